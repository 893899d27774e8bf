# SPDX-License-Identifier: Apache-2.0
"""What is known of an expert before it is loaded: its settings, its checkpoint's facts and the memory it
will take.
"""

from __future__ import annotations

import argparse
import contextlib
from dataclasses import dataclass
from pathlib import Path

from vllm_axion.serving.checkpoint import CheckpointFacts, find_local_checkpoint, inspect_checkpoint
from vllm_axion.serving.config import ExpertConfig, MultiModelConfig
from vllm_axion.serving.memory_budget import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    FALLBACK_KV_BYTES,
    KV_BLOCK_TOKENS,
    MemoryNeed,
    default_kv_bytes,
    predict_need,
)
from vllm_axion.serving.safetensors_header import CheckpointError


@dataclass(frozen=True, slots=True)
class ExpertSpec:
    """One expert, ready to be loaded.

    ``facts`` and ``need`` are ``None`` for a hub model that is not in the local cache yet: vLLM downloads it
    at its first load, and only then can its size be told.
    """

    config: ExpertConfig
    model: str
    kv_bytes: int
    facts: CheckpointFacts | None = None
    need: MemoryNeed | None = None

    @property
    def expert_id(self) -> str:
        return self.config.expert_id

    @property
    def need_bytes(self) -> int:
        """Predicted need in bytes; 0 if it cannot be told yet."""
        return 0 if self.need is None else self.need.total


def inspect_expert(config: ExpertConfig, base_dir: Path, options: argparse.Namespace) -> ExpertSpec:
    """Read the expert's checkpoint headers and predict what it takes when served with these options of vLLM.

    Raises:
        CheckpointError: its files are missing, truncated or corrupt. The message holds no path of the
        machine.
    """
    model = config.resolved_model(base_dir)
    local = find_local_checkpoint(model)
    if local is None:
        if config.is_local:
            raise CheckpointError(f"{Path(model).name}: there is no such model directory on the server")
        return ExpertSpec(config, model, config.kv_cache_memory or FALLBACK_KV_BYTES)
    facts = inspect_checkpoint(local)
    batched = options.max_num_batched_tokens or DEFAULT_MAX_NUM_BATCHED_TOKENS
    kv_bytes = config.kv_cache_memory or default_kv_bytes(
        facts,
        options.max_model_len,
        options.max_num_seqs,
        kv_cache_dtype=options.kv_cache_dtype,
        dtype=options.dtype,
        max_num_batched_tokens=batched,
        block_tokens=options.block_size or KV_BLOCK_TOKENS,
    )
    need = predict_need(
        facts,
        dtype=options.dtype,
        kv_bytes=kv_bytes,
        quantization=options.quantization,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=batched,
    )
    return ExpertSpec(config, model, kv_bytes, facts, need)


def architectures(config: MultiModelConfig) -> list[str]:
    """Architectures of the experts whose checkpoints are on this machine, each once."""
    found: dict[str, None] = {}
    for expert in config.experts:
        local = find_local_checkpoint(expert.resolved_model(config.base_dir))
        with contextlib.suppress(CheckpointError):  # said when the manager starts
            if local is not None:
                found[inspect_checkpoint(local).architecture] = None
    return list(found)
