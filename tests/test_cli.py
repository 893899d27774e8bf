# SPDX-License-Identifier: Apache-2.0
"""The `vllm-axion` command and the script in entrypoints/: what they print and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import vllm_axion
from vllm_axion import cli, compat

_VLLM = compat.vllm_flavour().build != "missing"


def _invoke(*argv: str) -> Result:
    return CliRunner().invoke(cli.app, argv, env={"TERM": "dumb", "COLUMNS": "120", "NO_COLOR": "1"})


def _plain(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


def test_the_version_names_ours_and_vllms() -> None:
    result = _invoke("--version")
    assert result.exit_code == 0
    assert result.output.startswith(f"vllm-axion {vllm_axion.__version__}, ")
    if _VLLM:
        assert f"vLLM {compat.vllm_flavour().version}" in result.output


def test_the_version_is_the_installed_distributions() -> None:
    from importlib.metadata import version

    assert vllm_axion.__version__ == version("vllm-axion")


@pytest.mark.parametrize("argv", [["--help"], []])
def test_help_names_every_command(argv: list[str]) -> None:
    output = _plain(_invoke(*argv).output)
    for command in ("serve", "config", "demo-models", "route", "route-eval"):
        assert command in output


def test_help_of_serve_names_our_flags_and_points_to_vllms() -> None:
    result = _invoke("serve", "--help")
    assert result.exit_code == 0
    output = _plain(result.output)
    for part in ("CONFIG", "--host", "127.0.0.1", "--port", "8082", "--log-file", "vllm serve --help=all"):
        assert part in output


def test_the_shipped_schema_is_what_the_command_writes(tmp_path: Path) -> None:
    written = tmp_path / "schema.json"
    assert _invoke("config", "schema", "--out", str(written)).exit_code == 0
    shipped = Path(vllm_axion.__file__).parent / "serving" / "config.schema.json"
    assert written.read_bytes() == shipped.read_bytes()
    assert json.loads(_invoke("config", "schema").stdout) == json.loads(written.read_text())


def test_a_schema_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    result = _invoke("config", "schema", "--out", str(tmp_path / "no" / "such" / "folder.json"))
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert "folder.json: No such file or directory" in result.output


def test_config_check_ends_in_0_for_a_good_file_and_1_for_a_bad_one(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"experts": [{"expert_id": "one", "model_path": "./one"}]}))
    assert _invoke("config", "check", str(file)).exit_code == 0
    file.write_text(json.dumps({"experts": [{"expert_id": "one", "model_path": "./one", "priority": 9}]}))
    result = _invoke("config", "check", str(file))
    assert result.exit_code == 1
    assert "experts[0].priority: 9" in result.output  # with its brackets: not taken for markup


def test_config_check_of_a_missing_file_is_told(tmp_path: Path) -> None:
    result = _invoke("config", "check", str(tmp_path / "missing.json"))
    assert result.exit_code == 1
    assert "missing.json" in result.output
    assert "Traceback" not in result.output


def test_demo_models_in_an_impossible_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = _invoke("demo-models", str(tmp_path / "file" / "models"))
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("vllm-axion: error: ")
    assert "Traceback" not in result.output


@pytest.mark.skipif(not _VLLM, reason="vLLM is not installed")
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["vllm-axion", "serve"], ["--port", "9000", "missing.json"]),
        (["vllm", "serve"], ["--port", "9000", "--multi-model", "missing.json"]),
        (["entrypoints/multi_model_server.py"], ["--port", "9000", "--config", "missing.json"]),
    ],
)
def test_each_launcher_ends_in_one_line_without_its_file(
    command: list[str], flags: list[str], repository: Path, tmp_path: Path
) -> None:
    script = repository / command[0] if "/" in command[0] else Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [sys.executable, str(script), *command[1:], *flags],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr[-4000:]
    own = [line for line in done.stderr.splitlines() if ": error: " in line]
    assert len(own) == 1
    assert "missing.json" in own[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["-m", "vllm_axion.cli", "serve"], ["entrypoints/multi_model_server.py", "--config"]]
)
def test_without_vllm_a_start_says_what_to_install(
    command: list[str], repository: Path, tmp_path: Path
) -> None:
    # A Python that sees this package and its requirements, but neither torch nor vLLM.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'vllm'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: (\n"
        "    None if name in ('torch', 'vllm') else found(name, package))\n"
    )
    done = subprocess.run(
        [sys.executable, *command, "config.json"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=repository,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2, done.stderr[-4000:]
    assert len(done.stderr.splitlines()) == 1
    assert "error: torch is not installed: install the CPU build of torch 2.13.0" in done.stderr


# --- route and route-eval ---


def test_route_names_the_expert_and_why() -> None:
    result = _invoke("route", "Escribe código Python")
    assert result.exit_code == 0
    output = _plain(result.output)
    assert "expert qwen_coder" in output and "domain coding, confidence" in output and "código" in output


def test_route_prints_json() -> None:
    told = json.loads(_invoke("route", "hola", "--json").output)
    assert {"expert_id", "domain", "confidence", "probabilities", "evidence", "reason"} <= set(told)


def test_route_knows_the_experts_of_a_configuration(tmp_path: Path) -> None:
    config = tmp_path / "own.json"
    config.write_text('{"experts": [{"expert_id": "only", "model_path": "./m"}]}')
    assert "expert only" in _plain(_invoke("route", "hola", "--config", str(config)).output)
    wrong = _invoke("route", "hola", "--config", str(tmp_path / "none.json"))
    assert wrong.exit_code == 2


def test_route_eval_writes_its_figures(tmp_path: Path) -> None:
    table, out, plot = tmp_path / "few.tsv", tmp_path / "few.json", tmp_path / "few.png"
    table.write_text("# three\ncoding\tEscribe código Python\ngeneral\thola\ngeneral\tEscribe SQL\n")
    result = _invoke("route-eval", str(table), "--json", str(out))
    assert result.exit_code == 0 and "accuracy 66.7 %" in result.output
    figures = json.loads(out.read_text())
    assert figures["accuracy"] == pytest.approx(2 / 3)
    assert {"per_domain", "per_language", "confusion", "ece", "auroc", "coverage", "latency_ms"} <= set(
        figures
    )
    pytest.importorskip("matplotlib")
    assert _invoke("route-eval", str(table), "--plot", str(plot)).exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("nonsense\n", "few.tsv:1: not of the form domain<TAB>text"),
        ("coding\tok\nlaw\ttext\n", "few.tsv:2: domain 'law' is none of"),
        ("", "no lines to evaluate"),
    ],
)
def test_route_eval_names_what_is_wrong_with_a_file(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "few.tsv").write_text(content)
    # The command's own console goes to the process's stderr: ask for the message where it is raised.
    from vllm_axion.serving.route_eval import RouteEvalError, read_labelled

    with pytest.raises(RouteEvalError, match=fault):
        read_labelled(tmp_path / "few.tsv", ("coding", "general"))
    assert _invoke("route-eval", str(tmp_path / "few.tsv")).exit_code == 2
