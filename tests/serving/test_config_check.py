# SPDX-License-Identifier: Apache-2.0
"""`vllm-axion config check`: what it finds in a file, and what it says."""

from __future__ import annotations

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving import config_check
from vllm_axion.serving.config_check import Report, check, check_engine_args, render
from vllm_axion.serving.config_faults import Fault
from vllm_axion.serving.engine_options import serve_parser

OF_THE_SERVER = "an expert cannot set it: it belongs to the server; give it on the command line"
NO_SUCH_OPTION = 'vLLM has no such option; did you mean "max_num_batched_tokens"?'


def expert(**fields: Any) -> dict[str, Any]:
    return {"expert_id": "coder", "model_path": "./model", **fields}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a model that looks like one."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path


def checked(folder: Path, data: object) -> Report:
    path = folder / "config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return check(path)


def test_good_file_says_so_and_exits_with_zero(folder: Path) -> None:
    report = checked(folder, {"experts": [expert()]})
    assert (report.faults, report.warnings, report.notices) == ((), (), ())
    assert (report.ok, report.exit_status) == (True, 0)
    assert render(report) == f"{folder}/config.json: good: 1 expert"


def test_every_fault_is_found_in_fields_between_fields_and_in_engine_options(folder: Path) -> None:
    report = checked(
        folder,
        {
            "experts": [
                expert(priorty=1, engine_args={"max_num_batched_toknes": 1, "port": 1}),
                expert(domain="codng", kv_cache_dtype="fp9", quantization="awk"),
            ],
            "lazy_loading": {"warmup_pool_size": 9},
        },
    )
    assert report.exit_status == 1
    assert [str(fault) for fault in report.faults] == [
        'experts[0].priorty: unknown field; did you mean "priority"?',
        f"experts[0].engine_args.port: {OF_THE_SERVER}",
        'experts[1].expert_id: "coder" is already the id of experts[0]; ids differ by more than case',
        'experts[1].domain: "codng" is not declared; did you mean "coding"? (or declare it under domains)',
        "lazy_loading.warmup_pool_size: 9 is more than max_loaded_experts, 5; at most 5 can be warm",
        f"experts[0].engine_args.max_num_batched_toknes: {NO_SUCH_OPTION}",
        'experts[1].quantization: vLLM has no "awk"; did you mean "awq"?',
        'experts[1].kv_cache_dtype: vLLM has no "fp9"; did you mean "fp8"?',
    ]  # fmt: skip
    text = render(report).splitlines()
    assert len(text) == len(report.faults) + 1
    assert text[0] == f'{folder}/config.json: experts[0].priorty: unknown field; did you mean "priority"?'
    assert text[-1] == f"{folder}/config.json: cannot be used: 8 faults"


def test_bad_json_is_a_fault_with_line_and_column(folder: Path) -> None:
    report = checked(folder, '{"experts": [}')
    assert [str(fault) for fault in report.faults] == ["line 1, column 14: not valid JSON: expecting value"]
    assert report.exit_status == 1


def test_missing_file_suggests_the_preset_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = check("config.dmeo.json")
    assert str(report.faults[0]) == 'no such file; did you mean the preset "config.demo.json"?'


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"experts": [expert(model_path="./none")]}, "experts[0].model_path: there is no folder "),
        ({"experts": [expert(model_path="../")]}, "holds no config.json, so it is not a model"),
        ({"experts": [expert(model_path="model")]}, 'if you mean the folder, write "./model"'),
        ({"experts": [expert(kv_cache_dtype="fp8")]}, 'kv_cache_dtype: "fp8" does not run on ARM CPUs'),
        ({"experts": [expert(quantization="gptq")]}, 'quantization: "gptq" does not run on ARM CPUs'),
        (
            {"experts": [expert()], "lazy_loading": {"warmup_pool_size": 2}},
            "more than the number of experts, 1",
        ),
        (
            {"experts": [expert()], "lazy_loading": {"auto_unload_after_s": 5}},
            "auto_unload_after_s: 5 is less than min_residency_s, 10",
        ),
        (
            {
                "experts": [expert(pinned=True), expert(expert_id="b")],
                "lazy_loading": {"max_loaded_experts": 1, "warmup_pool_size": 1},
            },
            "the others can never be loaded",
        ),
        ({"experts": [expert()], "domains": {"law": {}}}, "domains.law: no expert answers for this domain"),
        ({"experts": [expert()], "server": {"cors_origins": ["*"]}}, "any web page may use this server"),
        ({"experts": [expert()], "server": {"api_keys": [{"key": "k" * 20}]}}, "the key stands in the file"),
        ({"experts": [expert()], "server": {"api_keys": [{"key": "short"}]}}, "less than 16 characters"),
        (
            {"experts": [expert()], "server": {"api_keys": [{"key": "k" * 20}]}},
            'no key has the scope "admin"',
        ),
    ],
)
def test_what_may_surprise_is_a_warning_and_no_fault(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: object, line: str
) -> None:
    # What vLLM has to say is another matter, and takes seconds.
    monkeypatch.setattr(config_check, "check_engine_args", lambda data, base: ([], []))
    report = checked(folder, data)
    assert report.faults == ()
    assert any(line in warning for warning in report.warnings), report.warnings
    assert f"warning: {report.warnings[0]}" in render(report)


@pytest.mark.parametrize("model_path", ["./" + "x" * 5000, "x" * 5000, "./" + "a/" * 3000])
def test_model_path_too_long_for_the_system_is_a_warning_or_note(folder: Path, model_path: str) -> None:
    report = checked(folder, {"experts": [expert(model_path=model_path)]})
    assert report.faults == ()
    assert len(report.warnings) + len(report.notices) == 1


def test_key_file_that_others_may_read_is_a_warning(folder: Path) -> None:
    (folder / "key").write_text("k" * 20)
    data = {"experts": [expert()], "server": {"api_keys": [{"key_file": "key", "scopes": ["admin"]}]}}
    (folder / "key").chmod(0o640)
    assert checked(folder, data).warnings == ()
    (folder / "key").chmod(0o644)
    assert "chmod o-r" in checked(folder, data).warnings[0]


def test_router_that_sends_a_key_unencrypted_or_asks_twice_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AXION_TEST_KEY", "sk-1234567890")

    def warnings(**router: Any) -> tuple[str, ...]:
        return checked(folder, {"experts": [expert()], "router": router}).warnings

    encoder = {"type": "openai", "url": "http://example.org/v1", "model": "m", "key_env": "AXION_TEST_KEY"}
    assert "router.encoder.url: the key travels unencrypted to example.org" in warnings(encoder=encoder)[0]
    assert warnings(second_stage={**encoder, "url": "https://example.org/v1"}) == ()
    assert warnings(encoder={**encoder, "url": "http://localhost:8001"}) == ()
    assert "asked first already" in warnings(second_stage="ngram")[0]
    assert "sk-1234567890" not in str(warnings(encoder=encoder))


def test_key_is_never_shown(folder: Path) -> None:
    report = checked(folder, {"experts": [expert()], "server": {"api_keys": [{"key": "SECRET"}]}})
    assert report.warnings
    assert "SECRET" not in render(report) + repr(report)


def test_hub_model_that_is_not_downloaded_is_a_note(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "hub"))
    data = {"experts": [expert(model_path="owner/model")]}
    (note,) = checked(folder, data).notices
    assert "owner/model is not in the local Hugging Face cache" in note
    (folder / "hub" / "models--owner--model" / "snapshots" / "0123").mkdir(parents=True)
    assert checked(folder, data).notices == ()


def test_field_whose_feature_is_absent_is_a_note(folder: Path) -> None:
    report = checked(folder, {"experts": [expert(enable_neon=True)], "rag": {"enabled": True}})
    assert report.exit_status == 0
    assert [note.split(": ")[:2] for note in report.notices] == [
        ["experts[0].enable_neon", "not in this build; the expert runs on vLLM's own CPU kernels."],
        ["rag.enabled", "not in this build; requests are answered without retrieved documents."],
    ]


def test_without_vllm_the_rest_is_checked_and_a_note_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise ImportError("No module named 'vllm'")

    monkeypatch.setattr(config_check, "serve_parser", absent)
    report = checked(folder, {"experts": [expert(engine_args={"nonsense": 1, "port": 1})]})
    assert [fault.path for fault in report.faults] == ["experts[0].engine_args.port"]
    assert "not held against vLLM's options" in report.notices[0]
    assert "No module named 'vllm'" in report.notices[0]


def test_vllm_is_not_asked_when_there_is_nothing_to_ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked() -> None:
        raise AssertionError("vLLM was asked")

    monkeypatch.setattr(config_check, "serve_parser", asked)
    assert checked(folder, {"experts": [expert()]}).ok


def test_report_is_plain_lines_whatever_stands_in_the_file(folder: Path) -> None:
    report = checked(folder, {"experts": [expert(**{"a\nb\x1b[31m": 1})]})
    assert all(line.isprintable() for line in render(report).splitlines())
    assert len(render(report).splitlines()) == 2
    hostile = Report("a\nb", (Fault("", "x"),), ("c\x1b",))
    assert all(line.isprintable() for line in render(hostile).splitlines())


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["experts", "engine_args", "x"]), inner, max_size=3)
        ),
    )
)
def test_engine_options_of_any_json_value_are_faults_or_nothing(data: Any) -> None:
    faults, notices = check_engine_args(data, Path("/srv"), _parser())
    assert all(isinstance(fault, Fault) for fault in faults)
    assert notices == []


@functools.cache
def _parser() -> argparse.ArgumentParser:
    return serve_parser()
