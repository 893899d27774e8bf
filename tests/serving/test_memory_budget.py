# SPDX-License-Identifier: Apache-2.0
"""Predictions against vLLM's own functions, and the arithmetic of admission."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_axion.serving.checkpoint import CheckpointFacts, inspect_checkpoint
from vllm_axion.serving.memory_budget import (
    ENGINE_OVERHEAD_BYTES,
    FALLBACK_KV_BYTES,
    Budget,
    default_kv_bytes,
    format_bytes,
    kv_bytes_per_token,
    predict_need,
    required_kv_bytes,
    served_dtype,
)

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

# Shapes of the published checkpoints, as their config.json and safetensors headers give them.
AYA_8B = CheckpointFacts(
    architecture="CohereForCausalLM", model_type="cohere", weights_by_dtype={"F16": 16_056_025_088},
    storage="safetensors", dtype="float16", quantization=None, hidden_size=4096, intermediate_size=14336,
    vocab_size=256000, num_layers=32, num_heads=32, kv_heads=8, head_dim=128, kv_parts=2, sliding_layers=0,
    sliding_window=None, recurrent_layers=0, max_model_len=8192, tie_word_embeddings=True, head_stored=False,
    largest_tensor=256000 * 4096, largest_file=5 * GiB, vision_tower=False,
)  # fmt: skip
GEMMA3_4B = replace(
    AYA_8B, architecture="Gemma3ForConditionalGeneration", model_type="gemma3", dtype="bfloat16",
    weights_by_dtype={"BF16": 8_600_158_944}, hidden_size=2560, intermediate_size=10240, vocab_size=262208,
    num_layers=34, num_heads=8, kv_heads=4, head_dim=256, sliding_layers=29, sliding_window=1024,
    max_model_len=131072, largest_tensor=262208 * 2560, vision_tower=True,
)  # fmt: skip
MISTRAL_7B = replace(
    AYA_8B, architecture="MistralForCausalLM", model_type="mistral", dtype="bfloat16",
    weights_by_dtype={"BF16": 14_496_047_104}, vocab_size=32768, max_model_len=32768,
    tie_word_embeddings=False, head_stored=True, largest_tensor=14336 * 4096,
)  # fmt: skip


# --- KV cache ---


def test_kv_bytes_of_a_token() -> None:
    assert kv_bytes_per_token(MISTRAL_7B) == 128 * KiB  # 32 layers x 8 heads x 128 x (K and V) x 2 bytes
    assert kv_bytes_per_token(MISTRAL_7B, "fp8_e5m2") == 64 * KiB
    assert kv_bytes_per_token(MISTRAL_7B, dtype="float32") == 256 * KiB
    assert kv_bytes_per_token(MISTRAL_7B, "bfloat16", dtype="float32") == 128 * KiB
    assert kv_bytes_per_token(replace(MISTRAL_7B, kv_heads=None)) is None


# Asks vLLM's own planner, with specs of its own classes, for the least memory it starts with.
ASK_FOR_KV = """
import json, sys
from types import SimpleNamespace
from vllm_axion.compat import define_missing_torchvision_operators
define_missing_torchvision_operators()
import torch
from vllm.config import CacheConfig, VllmConfig
from vllm.v1.core.kv_cache_utils import get_kv_cache_configs
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

config = VllmConfig()
config.cache_config.kv_cache_layout = "LBHNC"
config.scheduler_config.async_scheduling = False
answers = []
for case in json.load(sys.stdin):
    config.model_config = SimpleNamespace(max_model_len=case["length"], original_max_model_len=case["length"])
    config.scheduler_config.max_num_batched_tokens = case["batched"]
    common = dict(block_size=128, num_kv_heads=4, head_size=64, dtype=torch.bfloat16)
    specs = {}
    for i in range(case["full"]):
        specs[f"full.{i}"] = FullAttentionSpec(**common)
    for i in range(case["sliding"]):
        specs[f"sliding.{i}"] = SlidingWindowSpec(**common, sliding_window=case["window"])
    def starts(memory):
        try:
            return get_kv_cache_configs(config, [dict(specs)], [memory])[0].num_blocks > 0
        except ValueError:
            return False
    low, high = 0, 1 << 44
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if starts(middle) else (middle, high)
    answers.append(high)
print("ANSWERS", json.dumps(answers))
"""


def ask_vllm(script: str, stdin: str = "") -> Any:
    """Run apart: importing vLLM and making its configuration writes this process's environment."""
    ran = subprocess.run(
        [sys.executable, "-c", script], input=stdin, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout.rpartition("ANSWERS")[2])


with_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@with_vllm
def test_required_kv_bytes_are_what_vllm_itself_asks_for() -> None:
    shapes = [
        (32, 0, None),
        (0, 32, 4096),
        (5, 29, 1024),
        (8, 24, 4096),
        (12, 13, 128),
        (13, 12, 128),
        (10, 14, 128),
        (15, 10, 128),
        (1, 1, 512),
        (3, 17, 64),
    ]
    cases: list[dict[str, Any]] = [
        {"full": full, "sliding": sliding, "window": window, "length": length, "batched": batched}
        for full, sliding, window in shapes
        for length, batched in [(1, 2048), (128, 2048), (1000, 2048), (8192, 2048), (40000, 4096)]
    ]
    answers = ask_vllm(ASK_FOR_KV, json.dumps(cases))
    for case, least in zip(cases, answers, strict=True):
        facts = replace(
            MISTRAL_7B, num_layers=case["full"] + case["sliding"], sliding_layers=case["sliding"],
             sliding_window=case["window"], kv_heads=4, head_dim=64,
        )  # fmt: skip
        length, batched = case["length"], case["batched"]
        required = required_kv_bytes(facts, length, max_num_batched_tokens=batched)
        assert required is not None
        # never below; above by one block per group at most, where Cohere2's wider window rounds up
        slack = 128 * (kv_bytes_per_token(facts) or 0) if case["sliding"] else 0
        assert least <= required <= least + slack, case
        assert default_kv_bytes(facts, length, 8, max_num_batched_tokens=batched) > least, case


def test_default_kv_holds_eight_conversations_or_one_long_one() -> None:
    block = 128 * 128 * KiB
    assert default_kv_bytes(MISTRAL_7B, 8192, 64) == block * (8 * 16 + 2)
    assert default_kv_bytes(MISTRAL_7B, 8192, 2) == block * (
        64 + 2
    )  # one of 8192 needs more than two of 2048
    assert default_kv_bytes(MISTRAL_7B, 512, 4) == block * (4 * 4 + 2)
    assert default_kv_bytes(MISTRAL_7B, 32768, 64) == block * (256 + 2)
    assert default_kv_bytes(MISTRAL_7B) == default_kv_bytes(MISTRAL_7B, 32768, 128)
    assert default_kv_bytes(MISTRAL_7B, 8192, 64, kv_cache_dtype="fp8") == block // 2 * (8 * 16 + 2)


def test_sliding_layers_save_memory_at_full_length() -> None:
    """Gemma 3 at 128k tokens: five layers keep all of it, 29 only their window."""
    all_full = replace(GEMMA3_4B, sliding_layers=0, sliding_window=None)
    assert default_kv_bytes(GEMMA3_4B, 131072, 1) < default_kv_bytes(all_full, 131072, 1) // 5


def test_models_whose_cache_is_unknown_get_a_fixed_budget() -> None:
    assert default_kv_bytes(replace(MISTRAL_7B, head_dim=None)) == FALLBACK_KV_BYTES
    assert default_kv_bytes(replace(MISTRAL_7B, recurrent_layers=24), 128, 1) == FALLBACK_KV_BYTES


@given(
    length=st.integers(1, 200_000), seqs=st.integers(1, 512), batched=st.integers(1, 20_000),
    layers=st.integers(1, 80), sliding=st.integers(0, 80), window=st.integers(1, 8192),
)  # fmt: skip
def test_default_kv_is_never_too_little_to_start(
    length: int, seqs: int, batched: int, layers: int, sliding: int, window: int
) -> None:
    facts = replace(MISTRAL_7B, num_layers=layers, sliding_layers=min(sliding, layers), sliding_window=window)
    required = required_kv_bytes(facts, length, max_num_batched_tokens=batched)
    assert required is not None
    assert default_kv_bytes(facts, length, seqs, max_num_batched_tokens=batched) > required


# --- need ---


@pytest.mark.parametrize(
    ("stored", "model_type", "asked", "served"),
    [
        ("bfloat16", "llama", "auto", "bfloat16"),
        ("float16", "llama", "auto", "float16"),
        ("float16", "gemma3", "auto", "bfloat16"),
        ("float32", "llama", "auto", "bfloat16"),
        (None, "llama", "auto", "float16"),  # config.json is silent: the tensors of AYA_8B are F16
        ("bfloat16", "llama", "float32", "float32"),
        ("bfloat16", "llama", "half", "float16"),
    ],
)
def test_served_dtype_is_vllms(stored: str | None, model_type: str, asked: str, served: str) -> None:
    assert served_dtype(replace(AYA_8B, dtype=stored, model_type=model_type), asked) == served


def test_weights_are_counted_in_the_served_dtype() -> None:
    facts = replace(MISTRAL_7B, weights_by_dtype={"F32": 4000, "BF16": 2000, "I32": 800, "F8_E4M3": 100})
    assert predict_need(facts, kv_bytes=0).weights == 2000 + 2000 + 800 + 100
    assert predict_need(facts, kv_bytes=0, dtype="float32").weights == 4000 + 4000 + 800 + 100


def test_demo_models_weights_are_predicted_to_the_byte(demo_models: Path) -> None:
    for config in sorted(demo_models.glob("*/config.json")):
        facts = inspect_checkpoint(config.parent)
        kv = default_kv_bytes(facts)
        need = predict_need(facts, kv_bytes=kv)
        assert need.weights == facts.weights_bytes
        assert need.total == need.weights + need.second_copies + kv + need.overhead


def test_packed_copies_of_the_vocabulary_are_counted() -> None:
    """Aya's head is its embedding: one copy, 2 GB. Others pack the embedding and the head, tied or not."""
    assert predict_need(AYA_8B, kv_bytes=0).second_copies == 256000 * 4096 * 2
    assert predict_need(GEMMA3_4B, kv_bytes=0).second_copies == 2 * 262208 * 2560 * 2
    assert predict_need(MISTRAL_7B, kv_bytes=0).second_copies == 2 * 32768 * 4096 * 2
    padded = replace(MISTRAL_7B, vocab_size=32001)
    assert predict_need(padded, kv_bytes=0).second_copies == 2 * 32064 * 4096 * 2


# Measures what vLLM's own layers hold before and after packing, in matrices of the vocabulary.
ASK_FOR_COPIES = """
import gc, json, os, re
from vllm_axion.compat import define_missing_torchvision_operators
define_missing_torchvision_operators()
import torch
from vllm.platforms import current_platform
current_platform.import_kernels()
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import init_distributed_environment, initialize_model_parallel
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

ROWS, COLUMNS = 32000, 1024
def held():
    gc.collect()
    rollup = open("/proc/self/smaps_rollup").read()
    return int(re.search(r"Anonymous:\\s+(\\d+)", rollup)[1]) * 1024 / (ROWS * COLUMNS * 2)

answers = []
with set_current_vllm_config(VllmConfig()):
    torch.set_num_threads(1)
    init_distributed_environment(1, 0, "file://" + os.path.join(os.environ["RENDEZVOUS"], "store"), 0, "gloo")
    initialize_model_parallel(1, 1)
    for tied in (True, False):
        start = held()
        embedding = VocabParallelEmbedding(ROWS, COLUMNS, params_dtype=torch.bfloat16)
        head = ParallelLMHead(ROWS, COLUMNS, params_dtype=torch.bfloat16)
        if tied:
            head = head.tie_weights(embedding)
        for layer in (embedding, head):
            layer.weight.data.fill_(1)
        loaded = held()
        for layer in (embedding, head):
            layer.quant_method.process_weights_after_loading(layer)
        answers.append([loaded - start, held() - start])
        del embedding, head, layer
print("ANSWERS", json.dumps(answers))
"""


@with_vllm
def test_vllm_keeps_as_many_copies_as_we_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails when vLLM stops packing the embedding: then `_second_copies` should count less."""
    monkeypatch.setenv("RENDEZVOUS", str(tmp_path))
    (tied_loaded, tied_packed), (untied_loaded, untied_packed) = ask_vllm(ASK_FOR_COPIES)
    vocabulary = 32000 * 1024 * 2
    counted = predict_need(replace(MISTRAL_7B, vocab_size=32000, hidden_size=1024), kv_bytes=0).second_copies
    assert tied_loaded == pytest.approx(1, abs=0.2) and untied_loaded == pytest.approx(2, abs=0.2)
    assert tied_packed - tied_loaded == pytest.approx(counted / vocabulary, abs=0.2)
    assert untied_packed - untied_loaded == pytest.approx(counted / vocabulary, abs=0.2)


def test_peak_while_loading_is_covered() -> None:
    """The largest tensor is there twice while it is packed; no KV cache and no work yet."""
    tensor = 40 * GiB
    need = predict_need(replace(MISTRAL_7B, largest_tensor=tensor // 2), kv_bytes=GiB)
    assert need.total >= need.weights + need.second_copies + tensor + ENGINE_OVERHEAD_BYTES
    pickled = replace(MISTRAL_7B, storage="pytorch", largest_file=10 * GiB)
    assert predict_need(pickled, kv_bytes=GiB).total >= need.weights + 10 * GiB + ENGINE_OVERHEAD_BYTES


def test_more_sequences_and_longer_steps_take_more() -> None:
    small = predict_need(MISTRAL_7B, kv_bytes=GiB, max_num_seqs=1, max_num_batched_tokens=128).overhead
    large = predict_need(MISTRAL_7B, kv_bytes=GiB, max_num_seqs=256, max_num_batched_tokens=8192).overhead
    assert ENGINE_OVERHEAD_BYTES < small < large


# --- budget ---


def test_budget_is_a_share_of_the_limit_and_includes_its_edge() -> None:
    budget = Budget(limit_bytes=1000, threshold=0.8)
    assert budget.allowed == 800
    assert budget.fits(300, in_use=500) and not budget.fits(301, in_use=500)
    assert budget.missing(400, in_use=500) == 100 and budget.missing(1, in_use=500) == 0
    assert budget.can_ever_fit(800) and not budget.can_ever_fit(801)
    assert not budget.can_ever_fit(800, floor=1)


@given(
    limit=st.integers(0, 1 << 50),
    threshold=st.floats(0.01, 1),
    need=st.integers(0, 1 << 50),
    used=st.integers(0, 1 << 50),
)
def test_freeing_what_is_missing_makes_it_fit(limit: int, threshold: float, need: int, used: int) -> None:
    budget = Budget(limit, threshold)
    missing = budget.missing(need, used)
    assert (missing == 0) == budget.fits(need, used)
    assert budget.fits(need, used - missing)
    if missing:
        assert not budget.fits(need, used - missing + 1)
    assert budget.allowed <= limit


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (1, "1 B"), (999, "999 B"), (1000, "1 KiB"), (1536, "1.5 KiB"), (512 * MiB, "512 MiB"),
        (1023 * MiB, "1 GiB"), (GiB, "1 GiB"), (16 * GiB - 1, "16 GiB"), (int(99.96 * GiB), "100 GiB"),
        (3 << 40, "3 TiB"), (5000 << 40, "5000 TiB"), (-1536, "-1.5 KiB"),
    ],
)  # fmt: skip
def test_sizes_are_readable(size: int, text: str) -> None:
    assert format_bytes(size) == text
