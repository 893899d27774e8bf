# SPDX-License-Identifier: Apache-2.0
"""Will an expert fit? What loading it takes, predicted from its checkpoint's headers, against a budget.

The prediction follows what vLLM 0.32 does on a CPU, so that admission errs towards refusing and never
towards the OOM killer. Four parts: weights in the served dtype, copies that packing leaves behind, the KV
cache, and the engine itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_axion.serving.checkpoint import (
    CAST_DTYPES,
    CheckpointFacts,
    find_local_checkpoint,
    inspect_checkpoint,
)
from vllm_axion.serving.machine_memory import (
    MachineMemory,
    ProcessMemory,
    process_memory,
    read_machine_memory,
)
from vllm_axion.serving.safetensors_header import DTYPE_BITS, CheckpointError

__all__ = [
    "Budget",
    "CheckpointError",
    "CheckpointFacts",
    "MachineMemory",
    "MemoryNeed",
    "ProcessMemory",
    "default_kv_bytes",
    "find_local_checkpoint",
    "format_bytes",
    "inspect_checkpoint",
    "kv_bytes_per_token",
    "predict_need",
    "process_memory",
    "read_machine_memory",
    "required_kv_bytes",
    "served_dtype",
]

MiB = 1 << 20

# An engine process with next to no model: Python, torch, vLLM and oneDNN. Measured: 345 MB PSS with a tiny
# model and 64 MB of KV, forked from a pre-imported server. Covers what loading was measured to leave above
# weights and copies (20 to 35 MB with an 8-layer model).
ENGINE_OVERHEAD_BYTES = 300 * MiB
# Tokens to a KV block on CPU (vllm/platforms/cpu.py:check_and_update_config).
KV_BLOCK_TOKENS = 128
# vLLM's defaults for its server on CPU (vllm/engine/arg_utils.py:get_batch_defaults).
DEFAULT_MAX_NUM_BATCHED_TOKENS = 2048
DEFAULT_MAX_NUM_SEQS = 128
# vLLM's length for a model whose config.json names none.
DEFAULT_MAX_MODEL_LEN = 2048
# The default KV cache holds this many conversations of this many tokens at once; more wait their turn.
TARGET_SEQS = 8
TARGET_SEQ_TOKENS = 2048
# For models whose cache cannot be worked out from config.json (recurrent states, unknown head counts).
FALLBACK_KV_BYTES = 1024 * MiB
# The vocabulary is padded to a multiple of this (vocab_parallel_embedding.py:DEFAULT_VOCAB_PADDING_SIZE).
VOCAB_PADDING = 64

# Models whose output head *is* the embedding module: one packed copy. Tied heads of all others are a module
# of their own that shares the weight, and each module packs.
_HEAD_IS_EMBEDDING = frozenset(
    {"CohereForCausalLM", "Cohere2ForCausalLM", "Cohere2MoeForCausalLM", "Gemma2ForCausalLM"}
)  # fmt: skip

_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4}
# vLLM serves these in bfloat16 instead of float16 (vllm/config/model.py:_FLOAT16_NOT_SUPPORTED_MODELS).
_NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes an expert takes; ``total`` covers its peak while loading as well as serving."""

    weights: int
    second_copies: int
    kv: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.second_copies + self.kv + self.overhead


@dataclass(frozen=True)
class Budget:
    """Share ``threshold`` (0..1] of ``limit_bytes`` is for experts and this server."""

    limit_bytes: int
    threshold: float

    @property
    def allowed(self) -> int:
        return int(self.limit_bytes * self.threshold)

    def fits(self, need: int, in_use: int) -> bool:
        """``need`` more bytes fit beside ``in_use``."""
        return need + in_use <= self.allowed

    def missing(self, need: int, in_use: int) -> int:
        """Bytes to be freed before ``need`` fits."""
        return max(0, need + in_use - self.allowed)

    def can_ever_fit(self, need: int, floor: int = 0) -> bool:
        """``need`` fits when every expert is unloaded; ``floor`` is what the server itself always takes."""
        return self.fits(need, floor)


def served_dtype(facts: CheckpointFacts, dtype: str = "auto") -> str:
    """The dtype vLLM serves in: ``auto`` is the checkpoint's own, with float32 served as bfloat16."""
    dtype = dtype.lower()
    if dtype != "auto":
        return {"half": "float16", "float": "float32"}.get(dtype, dtype)
    # a config.json without a dtype makes vLLM look at the tensors, and take the widest of mixed types
    halves = facts.dtype in ("float16", "half") or (
        facts.dtype is None and CAST_DTYPES.intersection(facts.weights_by_dtype) == {"F16"}
    )
    return "float16" if halves and facts.model_type not in _NO_FLOAT16 else "bfloat16"


def kv_bytes_per_token(
    facts: CheckpointFacts, kv_cache_dtype: str = "auto", dtype: str = "auto"
) -> int | None:
    """KV cache bytes of one token in all layers together; None if config.json doesn't tell the head sizes."""
    layer = _kv_bytes_per_token_layer(facts, kv_cache_dtype, dtype)
    return None if layer is None else layer * facts.num_layers


def required_kv_bytes(
    facts: CheckpointFacts,
    max_model_len: int | None = None,
    *,
    kv_cache_dtype: str = "auto",
    dtype: str = "auto",
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
    block_tokens: int = KV_BLOCK_TOKENS,
) -> int | None:
    """The least ``--kv-cache-memory-bytes`` with which vLLM starts; None if unknown.

    vLLM refuses to start unless one sequence of ``max_model_len`` tokens and its null block fit
    (``vllm/v1/core/kv_cache_utils.py:get_kv_cache_configs``).
    """
    pool = _kv_pool(facts, kv_cache_dtype, dtype, block_tokens)
    if pool is None:
        return None
    length = max_model_len or facts.max_model_len or DEFAULT_MAX_MODEL_LEN
    return pool.bytes_per_block * (pool.blocks(length, max_num_batched_tokens) + 1)


def default_kv_bytes(
    facts: CheckpointFacts,
    max_model_len: int | None = None,
    max_num_seqs: int | None = None,
    *,
    kv_cache_dtype: str = "auto",
    dtype: str = "auto",
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
    block_tokens: int = KV_BLOCK_TOKENS,
) -> int:
    """A KV budget for an expert that names none, in bytes, a whole number of blocks.

    Room for eight conversations of 2048 tokens (fewer if ``max_num_seqs`` or ``max_model_len`` say so)
    and always for one sequence of ``max_model_len``, without which vLLM does not start, with a block spare.
    """
    pool = _kv_pool(facts, kv_cache_dtype, dtype, block_tokens)
    if pool is None:
        return FALLBACK_KV_BYTES
    length = max_model_len or facts.max_model_len or DEFAULT_MAX_MODEL_LEN
    one = pool.blocks(length, max_num_batched_tokens)
    several = min(max_num_seqs or DEFAULT_MAX_NUM_SEQS, TARGET_SEQS)
    wanted = several * pool.blocks(min(length, TARGET_SEQ_TOKENS), max_num_batched_tokens)
    # + 1: the null block vLLM holds back; + 1 to spare
    size = pool.bytes_per_block * (max(one, wanted) + 2)
    return max(size, FALLBACK_KV_BYTES) if facts.recurrent_layers else size


def predict_need(
    facts: CheckpointFacts,
    *,
    dtype: str = "auto",
    kv_bytes: int,
    quantization: str | None = None,
    max_num_seqs: int | None = None,
    max_num_batched_tokens: int = DEFAULT_MAX_NUM_BATCHED_TOKENS,
) -> MemoryNeed:
    """Memory an expert takes, peak while loading included.

    Stored floating-point tensors are cast to the served dtype, packed ones stay as they are. An online
    ``quantization`` of a plain checkpoint is not credited: its layers are loaded unquantized first.
    """
    del quantization  # see above; named so that callers need not know
    itemsize = _DTYPE_BYTES.get(served_dtype(facts, dtype), 2)
    weights = sum(_served_bytes(name, size, itemsize) for name, size in facts.weights_by_dtype.items())
    copies = _second_copies(facts, itemsize)
    working = _working_bytes(facts, itemsize, max_num_seqs or DEFAULT_MAX_NUM_SEQS, max_num_batched_tokens)
    # While loading there is no KV cache and nothing runs, but packing makes the new tensor before it drops
    # the old, and a .bin file is read whole.
    loading = facts.largest_tensor * itemsize
    if facts.storage == "pytorch":
        loading = facts.largest_file
    transient = max(0, loading - working - kv_bytes)
    return MemoryNeed(weights, copies, kv_bytes, ENGINE_OVERHEAD_BYTES + working + transient)


def format_bytes(size: int) -> str:
    """``512 MiB``, ``1.5 GiB``: three digits at most, and a binary unit."""
    value, sign = float(abs(size)), "-" if size < 0 else ""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1024
        del units[0]
    number = f"{value:.0f}" if value >= 99.95 or units[0] == "B" else f"{value:.1f}".removesuffix(".0")
    return f"{sign}{number} {units[0]}"


# --- KV cache --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _KvPool:
    """vLLM's one pool of equal blocks, from which each group of layers draws its own."""

    bytes_per_block: int
    full_groups: int
    sliding_groups: int
    window: int
    block_tokens: int

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks one sequence of ``length`` tokens holds at most, ``in_flight`` being in the running step."""
        full = -(-length // self.block_tokens)
        # one more as a window may begin inside a block (SlidingWindowSpec.max_admission_blocks_per_request);
        # not window - 1 as there, because Cohere2 attends to one token more than its window says
        sliding = -(-min(self.window + in_flight, length) // self.block_tokens) + 1
        return self.full_groups * full + self.sliding_groups * sliding


def _kv_pool(facts: CheckpointFacts, kv_cache_dtype: str, dtype: str, block_tokens: int) -> _KvPool | None:
    """Groups of layers as ``_get_kv_cache_groups_uniform_page_size`` makes them."""
    layer = _kv_bytes_per_token_layer(facts, kv_cache_dtype, dtype)
    if layer is None:
        return None
    sliding, full = facts.sliding_layers, facts.num_layers - facts.sliding_layers
    window = facts.sliding_window or 0
    if not sliding or not full:
        groups, widest = (0, 1) if sliding else (1, 0), facts.num_layers
    else:
        few, many = sorted((sliding, full))
        size = many if many < few * 1.5 else few
        groups = (-(-full // size), -(-sliding // size))
        widest = max(-(-full // groups[0]), -(-sliding // groups[1]))
    return _KvPool(widest * layer * block_tokens, groups[0], groups[1], window, block_tokens)


def _kv_bytes_per_token_layer(facts: CheckpointFacts, kv_cache_dtype: str, dtype: str) -> int | None:
    if facts.kv_heads is None or facts.head_dim is None:
        return None
    if kv_cache_dtype == "auto":
        itemsize = _DTYPE_BYTES.get(served_dtype(facts, dtype), 2)
    else:
        # the 8-bit kinds all start with fp8 or int8; anything unknown is counted in full
        itemsize = 1 if kv_cache_dtype.startswith(("fp8", "int8")) else _DTYPE_BYTES.get(kv_cache_dtype, 2)
    return facts.kv_parts * facts.kv_heads * facts.head_dim * itemsize


# --- weights and work ------------------------------------------------------------------------------------


def _served_bytes(stored: str, size: int, itemsize: int) -> int:
    return size * itemsize * 8 // DTYPE_BITS[stored] if stored in CAST_DTYPES else size


def _second_copies(facts: CheckpointFacts, itemsize: int) -> int:
    """Packed copies of vocabulary matrices that stay beside their originals.

    oneDNN packs into memory of its own on every architecture (csrc/cpu/dnnl_helper.cpp: prepack_weight).
    A linear layer then drops the original (linear.py: ``remove_weight=True``), but the embedding and the
    head keep it (vocab_parallel_embedding.py: ``remove_weight=False``), and the embedding is packed
    although nothing multiplies by it. Measured with a 32000 x 1024 bfloat16 pair: tied 1 -> 3.1 matrices,
    untied 2 -> 4.0. A head that is stored although it is tied is not subtracted from the weights: vLLM loads
    it to compare, and keeps it if it differs.
    """
    if facts.vocab_size is None:
        return 0
    padded = -(-facts.vocab_size // VOCAB_PADDING) * VOCAB_PADDING
    copies = 1 if facts.architecture in _HEAD_IS_EMBEDDING else 2
    return copies * padded * facts.hidden_size * itemsize


def _working_bytes(facts: CheckpointFacts, itemsize: int, seqs: int, batched_tokens: int) -> int:
    """Activations of one full step and the sampler's tensors, an estimate from above.

    A layer holds the residual, its normed copy, q/k/v and the attention output (about six hidden widths),
    or gate, up and their product; the sampler logits in the served dtype and float32, sorted values and
    indices (int64), and probabilities, for each sequence of the step.
    """
    widths = 6 * facts.hidden_size + 3 * (facts.intermediate_size or 4 * facts.hidden_size)
    sampler = seqs * (facts.vocab_size or 0) * (itemsize + 4 + 4 + 8 + 4)
    return batched_tokens * widths * itemsize + sampler
