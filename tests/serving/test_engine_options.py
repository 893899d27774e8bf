# SPDX-License-Identifier: Apache-2.0
"""An expert's `engine_args`: what the server keeps for itself, and what vLLM's parser makes of the rest."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_axion.serving.engine_options import (
    OWN_FIELDS,
    canonical,
    engine_options,
    owned_by_server,
    serve_parser,
    static_faults,
    whole_number,
)


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    """vLLM's own parser; seconds to make."""
    return serve_parser()


def read(parser: argparse.ArgumentParser, **args: Any) -> dict[str, Any]:
    values, faults = engine_options(args, parser, Path("/srv"))
    assert faults == []
    return values


def fault(parser: argparse.ArgumentParser, **args: Any) -> str:
    faults = engine_options(args, parser, Path("/srv"))[1]
    assert len(faults) == 1
    assert str(faults[0]).isprintable()
    return str(faults[0])


# ---------------------------------------------------------------- without vLLM


@pytest.mark.parametrize("name", ["max_num_seqs", "max-num-seqs", "--max-num-seqs"])
def test_option_may_be_spelled_as_name_or_flag(name: str) -> None:
    assert canonical(name) == "max_num_seqs"


def test_whole_number_is_read_in_any_spelling_and_nothing_else_is() -> None:
    for name in ("block_size", "block-size", "--block-size"):
        assert whole_number({"seed": 1, name: 64}, "block_size") == 64
    for value in (True, "64", 64.0, None):
        assert whole_number({"block_size": value}, "block_size") is None


@pytest.mark.parametrize(
    "name",
    [
        "host", "port", "--port", "uds", "ssl_keyfile", "ssl-certfile", "uvicorn_log_level", "log_file",
        "api_key", "allowed_origins", "model", "served-model-name", "data_parallel_size",
        "data-parallel-rank", "headless", "grpc", "grpc-port", "multi-model", "middleware",
        "trust_remote_code", "no-trust-remote-code", "allowed_local_media_path", "hf_token",
        "tensor_parallel_size", "worker_cls", "device-memory-utilization",
    ],
)  # fmt: skip
def test_option_of_the_server_is_refused_with_a_reason(name: str) -> None:
    (found,) = static_faults({name: "x"}, {}, ("experts", 0, "engine_args"))
    assert found.path.startswith("experts[0].engine_args")
    assert found.message.startswith("an expert cannot set it: ")
    assert len(found.message) > len("an expert cannot set it: ") + 10


@pytest.mark.parametrize(
    "name", ["max_num_batched_tokens", "logprobs_mode", "model_impl", "chat_template", "seed"]
)
def test_option_of_the_engine_is_not_the_servers(name: str) -> None:
    assert owned_by_server(name) is None


def test_every_option_of_the_server_is_one_that_vllm_has(parser: argparse.ArgumentParser) -> None:
    # A name that vLLM renames would otherwise silently stop being refused.
    from vllm_axion.serving import engine_options as module

    known = {canonical(flag) for action in parser._actions for flag in action.option_strings}
    known |= {action.dest for action in parser._actions}
    # Ours, in the parser only where `vllm serve` itself builds it; and `--help`.
    assert set(module._SERVER_OWNED) - known <= {"multi_model", "help"}
    for prefix in set(module._SERVER_OWNED_PREFIXES) - {"log"}:
        assert any(name.startswith(prefix + "_") for name in known), prefix


def test_every_option_with_a_field_of_its_own_is_one_that_vllm_has(parser: argparse.ArgumentParser) -> None:
    assert set(OWN_FIELDS) <= {action.dest for action in parser._actions}


def test_one_option_in_two_spellings_is_refused() -> None:
    (found,) = static_faults({"block-size": 64, "block_size": 32}, {}, ("engine_args",))
    assert str(found) == 'engine_args.block_size: is the same option as "block-size"; keep one'


def test_option_that_repeats_a_field_is_refused() -> None:
    (found,) = static_faults({"max-num-seqs": 4}, {"max_num_seqs": 8}, ("engine_args",))
    assert (
        str(found)
        == 'engine_args.max-num-seqs: is the same setting as the field "max_num_seqs"; keep the field'
    )


def test_step_too_small_for_its_requests_is_refused_before_vllm_does() -> None:
    small = {"max_num_batched_tokens": 16}
    assert static_faults(small, {"max_num_seqs": 16}, ("engine_args",)) == []
    (found,) = static_faults(small, {"max_num_seqs": 17}, ("engine_args",))
    assert "16 is less than max_num_seqs, 17" in str(found)
    whole = {**small, "enable_chunked_prefill": False}
    (found,) = static_faults(whole, {"max_model_len": 17}, ("engine_args",))
    assert "16 is less than max_model_len, 17" in str(found)


# ---------------------------------------------------------------- with vLLM


def test_values_are_what_the_command_line_would_have_given(parser: argparse.ArgumentParser) -> None:
    args: dict[str, Any] = {
        "max-num-batched-tokens": "2k",
        "block_size": 64,
        "enable_prefix_caching": False,
        "no-enforce-eager": True,
        "limit_mm_per_prompt": {"image": 2},
        "hf_overrides": {"rope_theta": 1.0},
        "scheduling-policy": "priority",
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
        "ignore_patterns": ["*.bin", "*.pth"],
        "seed": None,
    }
    command_line = [
        "--max-num-batched-tokens", "2k", "--block-size", "64",
        "--no-enable-prefix-caching", "--no-enforce-eager",
        "--limit-mm-per-prompt", '{"image": 2}', "--hf-overrides", '{"rope_theta": 1.0}',
        "--scheduling-policy", "priority", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--ignore-patterns", "*.bin", "*.pth",
    ]  # fmt: skip
    values = read(parser, **args)
    expected = vars(parser.parse_args(command_line))
    assert values == {name: expected[name] for name in values}
    assert len(values) == len(args) - 1  # null leaves the default


def test_lora_modules_may_be_objects_or_text(parser: argparse.ArgumentParser) -> None:
    expected = parser.parse_args(["--lora-modules", "a=b"]).lora_modules
    assert read(parser, lora_modules=["a=b"])["lora_modules"] == expected
    assert read(parser, lora_modules=[{"name": "a", "path": "b"}])["lora_modules"] == expected


def test_relative_path_starts_from_the_configuration_file(
    parser: argparse.ArgumentParser, tmp_path: Path
) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    values, faults = engine_options({"chat_template": "./chat.jinja"}, parser, tmp_path)
    assert (values, faults) == ({"chat_template": str(tmp_path / "chat.jinja")}, [])


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"max_num_batched_toknes": 1}, 'vLLM has no such option; did you mean "max_num_batched_tokens"?'),
        ({"qqqq": 1}, "vLLM has no such option; `vllm serve --help=all` lists them"),
        ({"block_size": "x"}, '"x" is not a whole number'),
        ({"block_size": 1.5}, "1.5 is not a whole number"),
        ({"block_size": True}, "true is not a whole number"),
        ({"enforce_eager": "yes"}, '"yes" is not true or false'),
        ({"scheduling_policy": "fifo"}, '"fifo" is not one of its values; it takes fcfs, priority'),
        ({"logprobs_mode": "raw_logit"}, 'did you mean "raw_logits"?'),
        ({"limit_mm_per_prompt": 3}, "3 is not an object {...}"),
        ({"generation_config": {"a": 1}}, '{"a": 1} is not text'),
        ({"compilation_config": {"moode": 0}}, "moode: unknown field"),
        ({"lora_modules": [3]}, "3 is not text or an object"),
        ({"ignore_patterns": []}, "give at least one"),
        ({"enable_auto_tool_choice": True}, "--enable-auto-tool-choice requires --tool-call-parser"),
        ({"chat_template": "/none/such.jinja"}, "doesn't exist"),
    ],
)
def test_value_that_vllm_would_refuse_is_one_clear_line(
    parser: argparse.ArgumentParser, args: dict[str, Any], line: str
) -> None:
    message = fault(parser, **args)
    assert line in message
    assert "validation error" not in message


def test_every_fault_is_reported(parser: argparse.ArgumentParser) -> None:
    faults = engine_options({"block_size": "x", "sed": 1, "enforce_eager": 0}, parser, Path("/srv"))[1]
    assert [found.path for found in faults] == [
        "engine_args.block_size",
        "engine_args.sed",
        "engine_args.enforce_eager",
    ]


@pytest.mark.parametrize(
    "value", [None, True, -1, 1.5, 10**400, "", "\0", "x" * 5000, [], [[]], {}, {"a": {}}]
)
def test_no_value_of_any_option_raises(parser: argparse.ArgumentParser, value: Any) -> None:
    for action in parser._actions:
        values, faults = engine_options({action.dest: value}, parser, Path("/srv"))
        assert all("\n" not in str(found) for found in faults)
        assert set(values) <= {action.dest}


def test_environment_without_vllm_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("vllm.entrypoints")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError):
        serve_parser()
