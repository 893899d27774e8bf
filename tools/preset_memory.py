# SPDX-License-Identifier: Apache-2.0
"""Tables of `docs/configuration.md`: how the presets differ, and the memory each needs, computed.

`python tools/preset_memory.py` prints them. The shapes are those of the models' published config.json;
parameters are counted from the shapes, so that a wrong shape shows as a wrong total (a test compares it with
the published one).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vllm_axion.serving.config import PRESETS, ExpertConfig, MultiModelConfig
from vllm_axion.serving.engine_options import whole_number
from vllm_axion.serving.memory_budget import (
    DEFAULT_MAX_NUM_BATCHED_TOKENS,
    KV_BLOCK_TOKENS,
    CheckpointFacts,
    MemoryNeed,
    default_kv_bytes,
    kv_bytes_per_token,
    predict_need,
    required_kv_bytes,
)

GIB = 1024**3
REAL_PRESETS = tuple(name for name in PRESETS if name != "config.demo.json")


@dataclass(frozen=True)
class Model:
    """A decoder's shape as its config.json gives it; `other` counts what stands beside the decoder."""

    architecture: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    length: int
    tied: bool
    norms: int  # parameters of one layer's norms
    bias: int = 0  # parameters of one layer's biases
    other: int = 0  # vision tower and projector
    sliding_layers: int = 0
    window: int | None = None

    @property
    def parameters(self) -> int:
        """Stored parameters: q, k, v, o; gate, up, down; norms; embedding, and head unless tied."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.mlp + self.norms + self.bias
        vocabulary = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * layer + vocabulary + self.hidden + self.other

    @property
    def facts(self) -> CheckpointFacts:
        return CheckpointFacts(
            architecture=self.architecture,
            model_type=self.model_type,
            weights_by_dtype={"BF16": 2 * self.parameters},
            storage="safetensors",
            dtype="bfloat16",
            quantization=None,
            hidden_size=self.hidden,
            intermediate_size=self.mlp,
            vocab_size=self.vocab,
            num_layers=self.layers,
            num_heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            kv_parts=2,
            sliding_layers=self.sliding_layers,
            sliding_window=self.window,
            recurrent_layers=0,
            max_model_len=self.length,
            tie_word_embeddings=self.tied,
            head_stored=not self.tied,
            largest_tensor=self.vocab * self.hidden,
            largest_file=0,
            vision_tower=self.other > 0,
        )


MODELS = {
    "microsoft/Phi-4-mini-instruct": Model(
        "Phi3ForCausalLM", "phi3", 3072, 32, 24, 8, 128, 8192, 200064, 131072, tied=True, norms=2 * 3072
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": Model(
        "MistralForCausalLM", "mistral", 4096, 32, 32, 8, 128, 14336, 32768, 32768, tied=False, norms=2 * 4096
    ),
    "Qwen/Qwen2.5-Coder-7B-Instruct": Model(
        "Qwen2ForCausalLM", "qwen2", 3584, 28, 28, 4, 128, 18944, 152064, 32768, tied=False, norms=2 * 3584,
        bias=128 * (28 + 2 * 4),
    ),
    # SigLIP tower (27 layers of 1152, 896 x 896 pixels) and projector: 419,816,304 parameters.
    "google/gemma-3-4b-it": Model(
        "Gemma3ForConditionalGeneration", "gemma3", 2560, 34, 8, 4, 256, 10240, 262208, 131072, tied=True,
        norms=4 * 2560 + 2 * 256, other=419_816_304, sliding_layers=29, window=1024,
    ),
    "CohereLabs/aya-expanse-8b": Model(
        "CohereForCausalLM", "cohere", 4096, 32, 32, 8, 128, 14336, 256000, 8192, tied=True, norms=4096
    ),
}  # fmt: skip


def batched_tokens(expert: ExpertConfig) -> int:
    """Tokens of one step of the expert's engine."""
    return whole_number(expert.engine_args, "max_num_batched_tokens") or DEFAULT_MAX_NUM_BATCHED_TOKENS


def block_tokens(expert: ExpertConfig) -> int:
    """Tokens of one block of the expert's KV cache."""
    return whole_number(expert.engine_args, "block_size") or KV_BLOCK_TOKENS


def least_kv_bytes(expert: ExpertConfig) -> int:
    """The smallest KV budget with which the expert's engine starts."""
    least = required_kv_bytes(
        MODELS[expert.model_path].facts,
        expert.max_model_len,
        max_num_batched_tokens=batched_tokens(expert),
        block_tokens=block_tokens(expert),
    )
    assert least is not None
    return least


def need(expert: ExpertConfig) -> MemoryNeed:
    """Memory the expert takes with the preset's settings."""
    facts = MODELS[expert.model_path].facts
    kv = expert.kv_cache_memory or default_kv_bytes(facts, expert.max_model_len, expert.max_num_seqs)
    return predict_need(
        facts,
        dtype=expert.dtype,
        kv_bytes=kv,
        max_num_seqs=expert.max_num_seqs,
        max_num_batched_tokens=batched_tokens(expert),
    )


def needs_at_start(config: MultiModelConfig) -> list[int]:
    """Bytes of the experts loaded at start: the pinned ones, then by priority as many as are to be warm."""
    order = sorted(config.experts, key=lambda expert: (not expert.pinned, expert.priority))
    pinned = sum(expert.pinned for expert in config.experts)
    return [need(expert).total for expert in order[: max(config.lazy_loading.warmup_pool_size, pinned)]]


def needs_at_once(config: MultiModelConfig) -> list[int]:
    """Bytes of the experts that may be loaded together, the largest that the limits allow."""
    pinned = [need(expert).total for expert in config.experts if expert.pinned]
    others = sorted((need(expert).total for expert in config.experts if not expert.pinned), reverse=True)
    return pinned + others[: max(0, config.lazy_loading.max_loaded_experts - len(pinned))]


# ---------------------------------------------------------------- tables


def short(name: str) -> str:
    return name.removeprefix("config.").removesuffix(".json")


def gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def row(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |\n"


def heading(*cells: str) -> str:
    return row(*cells) + row(*("---" if i == 0 else "---:" for i in range(len(cells))))


def span(values: list[int], text: Callable[[int], str] = str) -> str:
    low, high = min(values), max(values)
    return text(low) if low == high else f"{text(low)} to {text(high)}"


def differences(configs: dict[str, MultiModelConfig]) -> Iterator[str]:
    yield heading("", *(f"`{short(name)}`" for name in configs))
    lines: dict[str, Callable[[MultiModelConfig], object]] = {
        "requests at once per expert (`max_num_seqs`)": lambda c: span(
            [e.max_num_seqs or 0 for e in c.experts]
        ),
        "tokens per step (`max_num_batched_tokens`)": lambda c: span([batched_tokens(e) for e in c.experts]),
        "longest prompt plus answer (`max_model_len`)": lambda c: span(
            [e.max_model_len or 0 for e in c.experts]
        ),
        "KV cache per expert, GiB": lambda c: span([e.kv_cache_memory or 0 for e in c.experts], gib),
        "tokens per KV block": lambda c: span([block_tokens(e) for e in c.experts]),
        "pinned experts": lambda c: pinned(c),
        "loaded at start": lambda c: c.lazy_loading.warmup_pool_size,
        "loaded at once, at most": lambda c: c.lazy_loading.max_loaded_experts,
        "unloaded when idle for": lambda c: idle(c.lazy_loading.auto_unload_after_s),
        "share of memory (`memory_threshold`)": lambda c: c.lazy_loading.memory_threshold,
        "waiting requests (`max_queue`)": lambda c: c.limits.max_queue,
        "first expert by priority": lambda c: min(c.experts, key=lambda e: e.priority).expert_id,
    }
    for label, cell in lines.items():
        yield row(label, *(cell(config) for config in configs.values()))


def pinned(config: MultiModelConfig) -> str:
    names = [expert.expert_id for expert in config.experts if expert.pinned]
    return "all" if len(names) == len(config.experts) else ", ".join(names) or "none"


def idle(seconds: float) -> str:
    if seconds == 0:
        return "never"
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"


def memory(configs: dict[str, MultiModelConfig]) -> Iterator[str]:
    yield "GiB per expert, and for the whole server; computed, not measured:\n\n"
    yield heading("", *(f"`{short(name)}`" for name in configs))
    ids = [expert.expert_id for expert in next(iter(configs.values())).experts]
    for position, name in enumerate(ids):
        yield row(f"`{name}`", *(gib(need(config.experts[position]).total) for config in configs.values()))
    yield row("loaded at start", *(gib(sum(needs_at_start(config))) for config in configs.values()))
    yield row("loaded at once, at most", *(gib(sum(needs_at_once(config))) for config in configs.values()))
    yield row(
        "**machine for that, at least**",
        *(
            f"**{gib(sum(needs_at_once(config)) / config.lazy_loading.memory_threshold)}**"
            for config in configs.values()
        ),
    )


def parts() -> Iterator[str]:
    yield "What an expert's figure is made of, with the default preset:\n\n"
    columns = ("parameters", "weights, bf16", "packed copies", "KV cache", "engine and activations", "sum")
    yield heading("", *columns, "KV per token")
    for expert in MultiModelConfig.load(REAL_PRESETS[0]).experts:
        model, found = MODELS[expert.model_path], need(expert)
        per_token = (kv_bytes_per_token(model.facts) or 0) // 1024
        yield row(
            f"`{expert.model_path}`",
            f"{model.parameters / 1e9:.2f} x 10^9",
            *(
                gib(part)
                for part in (found.weights, found.second_copies, found.kv, found.overhead, found.total)
            ),
            f"{per_token} KiB",
        )


def tables() -> str:
    """The three tables as Markdown."""
    configs = {name: MultiModelConfig.load(name) for name in REAL_PRESETS}
    return "\n".join("".join(table) for table in (differences(configs), memory(configs), parts()))


if __name__ == "__main__":
    sys.stdout.write(tables())
