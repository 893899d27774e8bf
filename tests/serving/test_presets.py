# SPDX-License-Identifier: Apache-2.0
"""The packaged presets: valid, loadable by vLLM, and each different in what its name says."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tools.preset_memory import MODELS, REAL_PRESETS, batched_tokens, block_tokens, least_kv_bytes, need
from vllm_axion.serving.config import (
    PRESETS,
    MultiModelConfig,
    find_config,
    not_in_this_build,
    preset_path,
    schema,
)
from vllm_axion.serving.config_check import check

EXPERT_IDS = [
    "phi4_fast",
    "mistral_balanced",
    "qwen_coder",
    "gemma3_multimodal",
    "aya_expanse_multilingual",
]
DOMAINS = ["general", "technical", "coding", "multimodal_expert", "multilingual_expert"]
# As the hub counts the parameters of each checkpoint.
PUBLISHED_PARAMETERS = {
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7_615_616_512,
    "google/gemma-3-4b-it": 4_300_079_472,
    "CohereLabs/aya-expanse-8b": 8_028_033_024,
}


def load(name: str) -> MultiModelConfig:
    return MultiModelConfig.load(preset_path(name))


def raw(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(preset_path(name).read_text(encoding="utf-8"))
    return data


ALL_WORKING, WITH_AYA, LOW_LATENCY, KV_CACHE, ULTRA = (load(name) for name in REAL_PRESETS)


# ---------------------------------------------------------------- all of them


def test_presets_are_the_files_of_the_folder() -> None:
    folder = preset_path(PRESETS[0]).parent
    assert {path.name for path in folder.glob("*.json")} == {*PRESETS, "config.json"}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_fits_the_json_schema(name: str) -> None:
    jsonschema.Draft202012Validator(schema()).validate(raw(name))


@pytest.mark.parametrize("name", PRESETS)
def test_preset_serves_the_five_experts_and_sets_nothing_that_is_not_in_this_build(name: str) -> None:
    config = load(name)
    assert [expert.expert_id for expert in config.experts] == EXPERT_IDS
    assert [expert.domain for expert in config.experts] == DOMAINS
    assert all(expert.description for expert in config.experts)
    assert {expert.dtype for expert in config.experts} == {"bfloat16"}
    assert not_in_this_build(config) == []


@pytest.mark.parametrize("name", PRESETS)
def test_preset_asks_for_nothing_that_does_not_run_on_arm(name: str) -> None:
    for expert in load(name).experts:
        assert expert.quantization is None
        assert expert.kv_cache_dtype == "auto"
        assert block_tokens(expert) % 32 == 0


@pytest.mark.parametrize("name", PRESETS)
def test_check_finds_no_fault_and_only_models_to_fetch(name: str) -> None:
    report = check(name)
    assert report.faults == ()
    assert all("model_path" in text for text in (*report.warnings, *report.notices))


def test_vllm_makes_an_engine_configuration_of_every_expert_of_every_preset(demo_models: Path) -> None:
    """On the demo models, which have the real architectures; in its own process, as it sets os.environ."""
    script = Path(__file__).with_name("preset_engine_configs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(demo_models)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    made = json.loads(done.stdout.splitlines()[-1])
    assert set(made) == {f"{name} {expert_id}" for name in PRESETS for expert_id in EXPERT_IDS}
    for key, (tokens, block) in made.items():
        name, expert_id = key.split()
        expert = next(expert for expert in load(name).experts if expert.expert_id == expert_id)
        assert (tokens, block) == (batched_tokens(expert), block_tokens(expert))


def test_bare_preset_name_is_found_unless_such_a_file_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config("config.demo.json") == preset_path("config.demo.json")
    assert MultiModelConfig.load("config.demo.json").base_dir == preset_path("config.demo.json").parent
    (tmp_path / "config.demo.json").write_text('{"experts": [{"expert_id": "mine", "model_path": "./m"}]}')
    assert MultiModelConfig.load("config.demo.json").experts[0].expert_id == "mine"
    with pytest.raises(KeyError):
        preset_path("../secrets.json")


def test_entrypoints_show_the_same_files_and_config_json_is_the_default(repository: Path) -> None:
    shown = repository / "entrypoints" / "configs"
    assert shown.resolve() == repository / "vllm_axion" / "configs"
    assert (shown / "config.json").resolve().name == PRESETS[0]
    assert MultiModelConfig.load(shown / "config.json") == ALL_WORKING


def test_demo_preset_points_at_the_models_that_make_serve_makes(repository: Path) -> None:
    config = MultiModelConfig.load(repository / "vllm_axion" / "configs" / "config.demo.json")
    assert [expert.resolved_model(config.base_dir) for expert in config.experts] == [
        str(repository / "models" / "demo" / expert_id) for expert_id in EXPERT_IDS
    ]
    assert {expert.kv_cache_memory for expert in config.experts} == {64 * 1024**2}
    assert config.lazy_loading.warmup_pool_size == 2


# ---------------------------------------------------------------- the five for real models


def test_model_shapes_have_the_published_number_of_parameters() -> None:
    assert {name: model.parameters for name, model in MODELS.items()} == PUBLISHED_PARAMETERS
    assert {expert.model_path for expert in ALL_WORKING.experts} == set(PUBLISHED_PARAMETERS)


@pytest.mark.parametrize("name", REAL_PRESETS)
def test_kv_budget_holds_a_request_of_the_full_length(name: str) -> None:
    # vLLM refuses to start otherwise.
    for expert in load(name).experts:
        assert expert.kv_cache_memory is not None
        assert expert.kv_cache_memory >= least_kv_bytes(expert), expert.expert_id
        assert (expert.max_model_len or 0) <= MODELS[expert.model_path].length


@pytest.mark.parametrize("name", REAL_PRESETS)
def test_step_holds_a_token_of_every_request_and_a_whole_picture(name: str) -> None:
    for expert in load(name).experts:
        assert batched_tokens(expert) >= (expert.max_num_seqs or 0)
        if expert.domain == "multimodal_expert":
            assert batched_tokens(expert) >= 256 + 2  # a Gemma 3 picture and its brackets


def test_no_two_presets_are_the_same_but_for_descriptions() -> None:
    for one, other in combinations((ALL_WORKING, WITH_AYA, LOW_LATENCY, KV_CACHE, ULTRA), 2):
        for mine, yours in zip(one.experts, other.experts, strict=True):
            assert mine.model_copy(update={"description": ""}) != yours.model_copy(update={"description": ""})
        assert one.lazy_loading != other.lazy_loading


def kv(config: MultiModelConfig, expert_id: str) -> int:
    return next(expert.kv_cache_memory or 0 for expert in config.experts if expert.expert_id == expert_id)


def test_all_working_lets_every_expert_load_and_leave() -> None:
    assert ALL_WORKING.lazy_loading.max_loaded_experts == len(EXPERT_IDS)
    assert not any(expert.pinned for expert in ALL_WORKING.experts)
    assert 0 < ALL_WORKING.lazy_loading.auto_unload_after_s <= 600


def test_with_aya_gives_aya_the_first_place_and_most_memory() -> None:
    aya = WITH_AYA.experts[-1]
    assert (aya.pinned, aya.priority) == (True, 1)
    for expert in WITH_AYA.experts[:-1]:
        assert not expert.pinned
        assert expert.priority > 1
        assert (expert.kv_cache_memory or 0) * 4 <= (aya.kv_cache_memory or 0)
        assert (expert.kv_cache_memory or 0) < kv(ALL_WORKING, expert.expert_id)
        assert (expert.max_num_seqs or 0) < (aya.max_num_seqs or 0)
    assert (aya.kv_cache_memory or 0) > kv(ALL_WORKING, aya.expert_id)


def test_low_latency_keeps_everything_loaded_and_its_steps_short() -> None:
    assert all(expert.pinned for expert in LOW_LATENCY.experts)
    for low, usual in zip(LOW_LATENCY.experts, ALL_WORKING.experts, strict=True):
        assert (low.max_num_seqs or 0) * 4 <= (usual.max_num_seqs or 0)
        assert batched_tokens(low) * 4 <= batched_tokens(usual)
        assert low.engine_args["enable_chunked_prefill"] is True
    assert LOW_LATENCY.lazy_loading.auto_unload_after_s > 10 * ALL_WORKING.lazy_loading.auto_unload_after_s


def test_optimized_kv_cache_keeps_more_context_and_keeps_it_longer() -> None:
    for large, usual in zip(KV_CACHE.experts, ALL_WORKING.experts, strict=True):
        assert large.engine_args["enable_prefix_caching"] is True
        assert (large.kv_cache_memory or 0) >= 4 * (usual.kv_cache_memory or 0)
        assert block_tokens(large) < block_tokens(usual)
        longest = MODELS[large.model_path].length
        assert (large.max_model_len or 0) > (usual.max_model_len or 0) or large.max_model_len == longest
    assert KV_CACHE.lazy_loading.auto_unload_after_s > ALL_WORKING.lazy_loading.auto_unload_after_s


def test_ultra_low_latency_serves_few_short_requests_and_unloads_nothing() -> None:
    for expert in ULTRA.experts:
        assert (expert.max_num_seqs or 0) <= 2
        assert (expert.max_model_len or 0) <= 2048
        assert expert.engine_args["enforce_eager"] is True
    assert ULTRA.lazy_loading.auto_unload_after_s == 0
    assert 0 < sum(expert.pinned for expert in ULTRA.experts) < len(EXPERT_IDS)
    assert ULTRA.limits.max_queue < ALL_WORKING.limits.max_queue


def test_memory_of_the_preset_with_aya_fits_a_machine_of_64_gib() -> None:
    """Aya and the two largest others; the figure in the docs is made by the same functions."""
    totals = sorted((need(expert).total for expert in WITH_AYA.experts[:-1]), reverse=True)
    most = WITH_AYA.lazy_loading.max_loaded_experts - 1
    at_once = need(WITH_AYA.experts[-1]).total + sum(totals[:most])
    assert at_once <= 64 * 1024**3 * WITH_AYA.lazy_loading.memory_threshold
