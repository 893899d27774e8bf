# SPDX-License-Identifier: Apache-2.0
"""What is known of an expert before it is loaded."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vllm_axion.serving.config import ExpertConfig, MultiModelConfig
from vllm_axion.serving.expert_spec import ExpertSpec, architectures, inspect_expert
from vllm_axion.serving.memory_budget import FALLBACK_KV_BYTES
from vllm_axion.serving.safetensors_header import CheckpointError

MIB = 1024**2


def options(**changes: Any) -> argparse.Namespace:
    """The options of vLLM that count for memory, at their defaults."""
    defaults: dict[str, Any] = dict.fromkeys(
        ("max_num_batched_tokens", "max_model_len", "max_num_seqs", "block_size", "quantization")
    )
    return argparse.Namespace(**{**defaults, "kv_cache_dtype": "auto", "dtype": "auto", **changes})


def inspect(model_path: str, base: Path = Path("/"), fields: Any = None, **changes: Any) -> ExpertSpec:
    config = ExpertConfig(expert_id="one", model_path=model_path, **(fields or {}))
    return inspect_expert(config, base, options(**changes))


def test_the_need_is_told_from_the_checkpoint_alone(demo_models: Path) -> None:
    spec = inspect(str(demo_models / "qwen_coder"))
    assert spec.facts is not None and spec.facts.architecture == "Qwen2ForCausalLM"
    assert spec.need is not None and spec.need_bytes == spec.need.total > spec.facts.weights_bytes
    assert spec.need.kv == spec.kv_bytes > 0


def test_a_relative_model_path_starts_at_the_configuration_file(demo_models: Path) -> None:
    assert inspect("./qwen_coder", demo_models).model == str(demo_models / "qwen_coder")


def test_the_cache_the_file_asks_for_is_the_one_that_counts(demo_models: Path) -> None:
    spec = inspect(str(demo_models / "qwen_coder"), fields={"kv_cache_memory": 64 * MIB})
    assert spec.kv_bytes == 64 * MIB and spec.need is not None and spec.need.kv == 64 * MIB


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"max_model_len": 128, "max_num_seqs": 4}, {"max_model_len": 1024, "max_num_seqs": 4}),
        ({"max_model_len": 512, "max_num_seqs": 1}, {"max_model_len": 512, "max_num_seqs": 64}),
        ({"dtype": "bfloat16"}, {"dtype": "float32"}),
        ({"max_num_batched_tokens": 256}, {"max_num_batched_tokens": 65536}),
    ],
    ids=str,
)
def test_options_of_vllm_change_the_need(demo_models: Path, less: Any, more: Any) -> None:
    model = str(demo_models / "qwen_coder")
    assert inspect(model, **less).need_bytes < inspect(model, **more).need_bytes


def test_a_hub_model_that_is_not_here_yet_has_no_need_but_a_cache() -> None:
    spec = inspect("no-such-organisation/no-such-model")
    assert (spec.facts, spec.need, spec.need_bytes) == (None, None, 0)
    assert spec.kv_bytes == FALLBACK_KV_BYTES


def test_a_missing_directory_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        inspect(str(tmp_path / "secret" / "gone"))
    assert str(caught.value) == "gone: there is no such model directory on the server"


@pytest.mark.parametrize("fault", ["empty", "no weights", "truncated", "not JSON"])
def test_a_broken_checkpoint_is_one_line_without_its_path(
    demo_models: Path, tmp_path: Path, fault: str
) -> None:
    model = tmp_path / "secret" / "broken"
    shutil.copytree(demo_models / "qwen_coder", model)
    weights = next(model.glob("*.safetensors"))
    if fault == "empty":
        shutil.rmtree(model)
        model.mkdir()
    elif fault == "no weights":
        weights.unlink()
    elif fault == "truncated":
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 1)
    else:
        (model / "config.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        inspect(str(model))
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_architectures_are_those_on_this_machine_each_once(demo_models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    paths = {
        "one": str(demo_models / "qwen_coder"),
        "two": str(demo_models / "qwen_coder"),
        "three": str(demo_models / "phi4_fast"),
        "broken": str(tmp_path / "empty"),
        "gone": str(tmp_path / "gone"),
        "hub": "no-such-organisation/no-such-model",
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"experts": [{"expert_id": i, "model_path": p} for i, p in paths.items()]}))
    tmp_path.chmod(0o755)
    assert architectures(MultiModelConfig.load(file)) == ["Qwen2ForCausalLM", "Phi3ForCausalLM"]
