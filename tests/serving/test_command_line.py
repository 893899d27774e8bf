# SPDX-License-Identifier: Apache-2.0
"""The server's arguments by each of its three launchers, parsed by vLLM's own parsers."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from vllm_axion import compat
from vllm_axion.serving import command_line

Launcher = Callable[[Sequence[str]], argparse.Namespace]


class Served(Exception):
    """Raised in place of serving, with what would have been served."""

    def __init__(self, config: str, args: argparse.Namespace) -> None:
        super().__init__(config)
        self.config = config
        self.namespace = args


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = types.ModuleType("vllm_axion.serving.multi_model_server")

    def run(config_path: str, args: argparse.Namespace) -> None:
        raise Served(config_path, args)

    server.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, server.__name__, server)


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "experts.json"
    file.write_text(json.dumps({"experts": [{"expert_id": "one", "model_path": "./one"}]}))
    return str(file)


@pytest.fixture(scope="module")
def vllm_parser() -> Any:
    """The parser `vllm`'s main makes, with its serve command."""
    parser = FlexibleArgumentParser(prog="vllm")
    command = ServeSubcommand()
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    command.subparser_init(subparsers).set_defaults(dispatch_function=command.cmd)
    return parser


@pytest.fixture
def vllm_serve(vllm_parser: Any) -> Callable[[Sequence[str]], Any]:
    """What `vllm`'s main does with a command line, to the dispatch."""

    def main(argv: Sequence[str]) -> Any:
        args = vllm_parser.parse_args(list(argv))
        if args.subparser == "serve":
            ServeSubcommand().validate(args)
        return args.dispatch_function(args)

    return main


# --- vllm serve --multi-model ---


@pytest.mark.parametrize(
    "flags",
    [
        ["--multi-model", "{config}", "--port", "9001"],
        ["--port", "9001", "--multi-model", "{config}"],
        ["--port=9001", "--multi-model={config}"],
        ["--multi_model", "{config}", "--port", "9001"],
    ],
)
def test_multi_model_works_in_any_position(flags: list[str], config: str, vllm_serve: Any) -> None:
    with pytest.raises(Served) as served:
        vllm_serve(["serve", *(flag.format(config=config) for flag in flags)])
    assert served.value.config == config
    assert served.value.namespace.port == 9001


@pytest.mark.parametrize(
    ("flags", "host", "port"),
    [
        ([], "127.0.0.1", 8082),
        (["--port", "8000"], "127.0.0.1", 8000),  # vLLM's default, but asked for
        (["--host", "192.0.2.7"], "192.0.2.7", 8082),
        (["--host", "::1", "--port", "8082"], "::1", 8082),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_host_and_port_are_ours_unless_given(
    flags: list[str], host: str, port: int, first: bool, config: str, vllm_serve: Any
) -> None:
    ours = ["--multi-model", config]
    with pytest.raises(Served) as served:
        vllm_serve(["serve", *(ours + flags if first else flags + ours)])
    assert (served.value.namespace.host, served.value.namespace.port) == (host, port)


def test_plain_vllm_serve_stays_stock(vllm_parser: Any) -> None:
    args = vllm_parser.parse_args(["serve", "some/model"])
    assert args.dispatch_function == ServeSubcommand.cmd
    assert args.subparser == "serve"
    assert (args.host, args.port) == (None, 8000)
    assert type(pickle.loads(pickle.dumps(args.port))) is int  # noqa: S301  # as vLLM hands it to its processes
    assert args.multi_model is None


def test_the_servers_arguments_can_be_sent_to_another_process(config: str, vllm_serve: Any) -> None:
    with pytest.raises(Served) as served:
        vllm_serve(["serve", "--multi-model", config])
    assert pickle.loads(pickle.dumps(served.value.namespace)).port == 8082  # noqa: S301


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["some/model"], "--multi-model takes its models from the config file; remove 'some/model'"),
        (
            ["--model", "some/model"],
            "--multi-model takes its models from the config file; remove 'some/model'",
        ),
        (
            ["--data-parallel-size", "2"],
            "--multi-model runs one engine per expert; remove --data-parallel-size",
        ),
        (["-dp", "2"], "--multi-model runs one engine per expert; remove --data-parallel-size"),
        (
            ["--data-parallel-rank", "0"],
            "--multi-model runs one engine per expert; remove --data-parallel-rank",
        ),
        (
            ["--data-parallel-multi-port-external-lb"],
            "--multi-model runs one engine per expert; remove --data-parallel-multi-port-external-lb",
        ),
        (["--middleware", "a.b"], "--multi-model does not take --middleware; put a proxy in front instead"),
        (
            ["--allow-credentials"],
            "--multi-model does not take --allow-credentials; set server.cors_origins instead",
        ),
        (["--headless"], "--multi-model is itself the API server; remove --headless"),
        (["--grpc"], "--multi-model serves HTTP only; remove --grpc"),
        (["--grpc-port", "9000"], "--multi-model serves HTTP only; remove --grpc-port"),
        (
            ["--api-server-count", "2"],
            "--multi-model is one API server for all experts; remove --api-server-count 2",
        ),
        (
            ["--config=a.yaml"],
            "vLLM ignores --config=a.yaml; use: vllm-axion serve CONFIG --config a.yaml",
        ),
        (["--enable-auto-tool-choice"], "--enable-auto-tool-choice requires --tool-call-parser"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_makes_no_sense_for_several_models_is_refused_in_one_line(
    flags: list[str],
    told: str,
    first: bool,
    config: str,
    vllm_serve: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours = ["--multi-model", config]
    with pytest.raises(SystemExit) as ended:
        vllm_serve(["serve", *(ours + flags if first else flags + ours)])
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"vllm serve: error: {told}\n"


def test_every_refused_flag_is_told_at_once(
    config: str, vllm_serve: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        vllm_serve(["serve", "some/model", "--multi-model", config, "--headless", "--grpc"])
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("flags", [["--api-server-count", "1"], ["--data-parallel-size", "1"]])
def test_a_flag_that_asks_for_what_is_done_anyway_is_accepted(
    flags: list[str], config: str, vllm_serve: Any
) -> None:
    with pytest.raises(Served):
        vllm_serve(["serve", "--multi-model", config, *flags])


def test_a_log_file_needs_multi_model(vllm_serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        vllm_serve(["serve", "some/model", "--log-file", "x.log"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "vllm serve: error: --log-file goes with --multi-model only\n"


@pytest.mark.parametrize(
    "prog",
    [
        "vllm",
        "vllm run-batch",
        "vllm bench serve",
        "vllm bench throughput",
        "vllm launch render",
        "api_server.py",
    ],
)
def test_other_commands_do_not_get_the_option(prog: str) -> None:
    parser = compat.make_serve_parser(prog=prog, usage=prog)
    assert "multi_model" not in vars(parser.parse_args([]))


def test_the_option_is_named_in_vllm_serves_help(vllm_parser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    serve_parser = vllm_parser._subparsers._group_actions[0].choices["serve"]
    assert "--multi-model CONFIG" in serve_parser.format_help()
    for search in ("all", "vllm-axion", "multi-model"):
        monkeypatch.setattr(FlexibleArgumentParser, "_search_keyword", search)
        assert "--multi-model CONFIG" in serve_parser.format_help()
        assert "127.0.0.1:8082" in serve_parser.format_help()


# --- vllm-axion serve, entrypoints/multi_model_server.py ---


@pytest.fixture(params=["vllm-axion serve", "multi_model_server.py"])
def own_launcher(request: pytest.FixtureRequest) -> Callable[[str, Sequence[str]], None]:
    def launch(config: str, flags: Sequence[str]) -> None:
        if request.param == "vllm-axion serve":
            command_line.serve([*flags, config], prog="vllm-axion serve")
        else:
            command_line.serve_from_config_flag(["--config", config, *flags], prog="multi_model_server.py")

    return launch


def test_our_launchers_take_vllms_flags(own_launcher: Any, config: str) -> None:
    with pytest.raises(Served) as served:
        own_launcher(config, ["--port", "9000", "--max-num-seqs", "8", "--api-key", "k", "--enforce-eager"])
    args = served.value.namespace
    assert served.value.config == config
    assert (args.host, args.port, args.max_num_seqs, args.enforce_eager) == ("127.0.0.1", 9000, 8, True)
    assert args.model_tag is None
    assert isinstance(args.model, str)


def test_our_launchers_default_to_localhost_8082(own_launcher: Any, config: str) -> None:
    with pytest.raises(Served) as served:
        own_launcher(config, [])
    assert (served.value.namespace.host, served.value.namespace.port) == ("127.0.0.1", 8082)


@pytest.mark.parametrize("flag", [["--model", "some/model"], ["--model=some/model"]])
def test_our_launchers_refuse_a_model(
    flag: list[str], own_launcher: Any, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        own_launcher(config, flag)
    assert ended.value.code == 2
    assert "takes its models from the config file; remove 'some/model'" in capsys.readouterr().err


def test_the_script_refuses_a_positional_model(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.serve_from_config_flag(["some/model", "--config", config], prog="multi_model_server.py")
    assert "remove 'some/model'" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["--config", "{file}"], ["--config={file}"]])
def test_vllms_yaml_file_of_flags_works_with_vllm_axion_serve(
    form: list[str], config: str, tmp_path: Path
) -> None:
    file = tmp_path / "flags.yaml"
    file.write_text("port: 9100\nmax-num-seqs: 4\n")
    with pytest.raises(Served) as served:
        command_line.serve([config, *(part.format(file=file) for part in form)], prog="vllm-axion serve")
    assert (served.value.namespace.port, served.value.namespace.max_num_seqs) == (9100, 4)


def test_without_a_file_the_default_preset_is_served() -> None:
    with pytest.raises(Served) as served:
        command_line.serve([], prog="vllm-axion serve")
    assert Path(served.value.config).name == command_line.DEFAULT_PRESET
    assert Path(served.value.config).is_file()


def test_a_preset_is_found_by_its_bare_name() -> None:
    with pytest.raises(Served) as served:
        command_line.serve(["config.low_latency_batching.json"], prog="vllm-axion serve")
    assert Path(served.value.config).is_file()


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "missing.json"), ("{", "bad.json"), ('{"experts": [], "expert": 1}', "bad.json: ")],
)
def test_a_faulty_file_is_told_without_a_traceback(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ("missing.json" if content is None else "bad.json")
    if content is not None:
        file.write_text(content)
    with pytest.raises(SystemExit) as ended:
        command_line.serve([str(file)], prog="vllm-axion serve")
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("vllm-axion serve: error: ") for line in lines)
    assert told in lines[0]


def test_an_unreadable_yaml_file_is_told_without_a_traceback(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.serve([config, "--config", "no-such-file.yaml"], prog="vllm-axion serve")
    assert ended.value.code == 2
    assert "no-such-file.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        (
            "VLLM_TARGET_DEVICE",
            "cpu",
            "VLLM_TARGET_DEVICE=cpu is set, and vLLM then skips every platform plug-in",
        ),
        ("VLLM_PLUGINS", "other", 'VLLM_PLUGINS leaves out "axion"'),
        ("VLLM_PLUGINS", "axion", "vLLM uses vllm.platforms.cpu.CpuPlatform"),
    ],
)
def test_an_inactive_platform_is_told_with_its_reason(
    variable: str,
    value: str,
    told: str,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import vllm.platforms
    from vllm.platforms.cpu import CpuPlatform

    monkeypatch.setattr(vllm.platforms, "_current_platform", CpuPlatform())
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as ended:
        command_line.serve([config], prog="vllm-axion serve")
    assert ended.value.code == 2
    assert f"the vllm-axion platform is not active: {told}" in capsys.readouterr().err


def test_a_process_whose_vllm_skips_plug_ins_says_so_in_one_line_of_error(config: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "vllm_axion.cli", "serve", config],
        env={**os.environ, "VLLM_TARGET_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "VLLM_TARGET_DEVICE=cpu is set" in ended.stderr.splitlines()[-1]
