# SPDX-License-Identifier: Apache-2.0
"""What is known of an expert before it is loaded: its settings, its checkpoint's facts and the memory it
will take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_axion.serving.checkpoint import CheckpointFacts, find_local_checkpoint, inspect_checkpoint
from vllm_axion.serving.config import ExpertConfig, MultiModelConfig
from vllm_axion.serving.memory_budget import FALLBACK_KV_BYTES, MemoryNeed, default_kv_bytes, predict_need
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


def inspect_expert(config: ExpertConfig, base_dir: Path) -> ExpertSpec:
    """Read the expert's checkpoint headers and predict what it takes.

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
    kv_bytes = config.kv_cache_memory or default_kv_bytes(
        facts,
        config.max_model_len,
        config.max_num_seqs,
        kv_cache_dtype=config.kv_cache_dtype,
        dtype=config.dtype,
    )
    need = predict_need(
        facts,
        dtype=config.dtype,
        kv_bytes=kv_bytes,
        quantization=config.quantization,
        max_num_seqs=config.max_num_seqs,
    )
    return ExpertSpec(config, model, kv_bytes, facts, need)


def architectures(config: MultiModelConfig) -> list[str]:
    """Architectures of the experts whose checkpoints are on this machine, each once."""
    found: dict[str, None] = {}
    for expert in config.experts:
        try:
            facts = inspect_expert(expert, config.base_dir).facts
        except CheckpointError:
            continue  # said when the manager starts
        if facts is not None:
            found[facts.architecture] = None
    return list(found)
