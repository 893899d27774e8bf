# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint says about itself, read without loading it.

Only ``config.json``, the safetensors index and the JSON header at the front of each safetensors file are
read: a few kilobytes for a model of many gigabytes, and no tensor data, no pickle, no code of the model.
The result decides how much memory an expert needs (``memory_budget.py``) and catches a truncated or
corrupt download before an engine is started for it.

Files are chosen as vLLM's loader chooses them (``DefaultModelLoader._prepare_weights``), so a repository
that holds the same weights twice (Mistral's ``consolidated.safetensors`` beside ``model-*.safetensors``)
is counted once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_axion.serving.safetensors_header import (
    MAX_HEADER_BYTES,
    CheckpointError,
    parse_json_object,
    read_safetensors_header,
)

# Above any real dimension, and low enough that products of a few of them stay sane.
_MAX_DIMENSION = 1 << 40

# Types vLLM casts to the dtype it serves in; everything else (packed and 8-bit weights) is kept as stored.
CAST_DTYPES = frozenset({"BF16", "F16", "F32", "F64"})

_TORCH_TO_SAFETENSORS: Mapping[str, str] = {
    "bfloat16": "BF16", "float16": "F16", "half": "F16", "float32": "F32", "float": "F32", "float64": "F64",
}  # fmt: skip

# What transformers' configuration classes assume for keys a config.json leaves out. Only for the families
# whose published files do leave some out: gemma-3's text_config, for one, has no head counts, no head_dim
# and no vocab_size. A test compares every entry with the installed transformers.
CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096, "tie_word_embeddings": False},
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "tie_word_embeddings": False},
    "phi3": {"sliding_window": None, "tie_word_embeddings": False},
    "cohere": {"vocab_size": 256000, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "cohere2": {"vocab_size": 256000, "sliding_window": 4096, "tie_word_embeddings": True},
    "gemma": {"head_dim": 256, "num_key_value_heads": 16, "tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096, "tie_word_embeddings": True,
    },
    "gemma3": {"tie_word_embeddings": True},
    "gemma3_text": {
        "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "max_position_embeddings": 131072, "sliding_window": 4096, "tie_word_embeddings": True,
    },
}  # fmt: skip

# One full-attention layer in every N when config.json has neither `layer_types` nor `sliding_window_pattern`.
_SLIDING_PATTERN: Mapping[str, int] = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}

_HEAD_SUFFIXES = ("lm_head.weight",)
# Files a training run leaves beside the weights; vLLM's loader skips the same ones.
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")


@dataclass(frozen=True)
class CheckpointFacts:
    """Sizes are bytes, lengths are tokens; ``None`` where the checkpoint does not say."""

    architecture: str
    model_type: str
    weights_by_dtype: Mapping[str, int]
    """Stored tensor bytes by safetensors type name; the key ``?`` holds files whose types are unknown."""
    storage: str
    """``safetensors`` or ``pytorch`` (``.bin``/``.pt``, sizes of the files)."""
    dtype: str | None
    """The ``dtype``/``torch_dtype`` of config.json, as torch names it."""
    quantization: str | None
    """``quantization_config.quant_method``: the checkpoint is stored quantized."""
    hidden_size: int
    intermediate_size: int | None
    vocab_size: int | None
    num_layers: int
    num_heads: int | None
    kv_heads: int | None
    head_dim: int | None
    kv_parts: int
    """2: keys and values; 1: one latent vector per token (multi-head latent attention)."""
    sliding_layers: int
    """Layers that attend within ``sliding_window`` tokens only."""
    sliding_window: int | None
    recurrent_layers: int
    """Layers with a state instead of a cache (Mamba, linear attention)."""
    max_model_len: int | None
    """The length vLLM takes when none is asked for."""
    tie_word_embeddings: bool
    head_stored: bool
    """The files hold an output head of their own."""
    largest_tensor: int
    """Elements of the largest stored tensor; 0 if unknown."""
    largest_file: int
    vision_tower: bool
    files: tuple[str, ...] = field(default=())

    @property
    def weights_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(self.weights_by_dtype.values())


def inspect_checkpoint(model_dir: Path) -> CheckpointFacts:
    """Facts of the checkpoint in ``model_dir``.

    Raises:
        CheckpointError: nothing servable there, or a file is missing, truncated or corrupt.
    """
    if not model_dir.is_dir():
        if model_dir.suffix == ".gguf":
            raise CheckpointError(
                f"{model_dir.name}: GGUF is not supported; give a directory with config.json and safetensors"
            )
        raise CheckpointError(
            f"{model_dir.name}: not a directory; a checkpoint is a directory with config.json and weights"
        )
    weights = _read_weights(model_dir)
    return _facts(_read_json(model_dir / "config.json"), weights)


def find_local_checkpoint(
    model: str, *, revision: str | None = None, cache_dir: Path | None = None
) -> Path | None:
    """Directory of a model given by path or hub id, from the local Hugging Face cache; never the network.

    ``revision`` and ``cache_dir`` are vLLM's ``--revision`` and ``--download-dir``. A download that was
    broken off is found too: `inspect_checkpoint` names what it lacks.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~")):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:  # comes with vLLM; without it there is no cache to look into
        return None
    try:
        config = try_to_load_from_cache(model, "config.json", cache_dir=cache_dir, revision=revision)
    except (HFValidationError, OSError):
        return None
    return Path(config).parent if isinstance(config, str) else None


# --- weights ---------------------------------------------------------------------------------------------


@dataclass
class _Weights:
    storage: str
    by_dtype: Counter[str] = field(default_factory=Counter)
    names: set[str] = field(default_factory=set)
    largest_tensor: int = 0
    largest_file: int = 0
    files: list[str] = field(default_factory=list)


def _read_weights(model_dir: Path) -> _Weights:
    for pattern, index in (
        ("consolidated*.safetensors", "consolidated.safetensors.index.json"),
        ("*.safetensors", "model.safetensors.index.json"),
    ):
        files = sorted(model_dir.glob(pattern))
        expected = _read_index(model_dir / index)
        if expected:
            files = [model_dir / name for name in sorted(set(expected.values()))]
        if files:
            return _read_safetensors(files, index, expected)
    for pattern in ("*.bin", "*.pt"):
        files = [f for f in sorted(model_dir.glob(pattern)) if not f.name.endswith(_NOT_WEIGHTS)]
        if files:
            return _read_pytorch(files)
    if any(model_dir.glob("*.gguf")):
        raise CheckpointError(
            "GGUF weights are not supported; give a directory with config.json and safetensors"
        )
    raise CheckpointError("no weights in the model's directory: expected *.safetensors (or *.bin)")


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name to file name; empty when there is no index."""
    if not path.is_file():
        return {}
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path.name}: no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{path.name}: weight_map names {str(name)[:80]!r}, not a safetensors file beside it"
            )
    return weight_map


def _read_safetensors(files: list[Path], index: str, expected: Mapping[str, str]) -> _Weights:
    found = _Weights("safetensors")
    held: dict[str, set[str]] = {}
    for path in files:
        if expected and not path.is_file():
            raise CheckpointError(f"{path.name}: missing, though {index} names it (download incomplete?)")
        tensors = read_safetensors_header(path)
        held[path.name] = set(tensors)
        for name, (dtype, elements, size) in tensors.items():
            if expected and expected.get(name) != path.name:
                continue  # vLLM loads a file whole, but a tensor listed elsewhere overwrites this copy
            found.by_dtype[dtype] += size
            found.names.add(name)
            found.largest_tensor = max(found.largest_tensor, elements)
        found.largest_file = max(found.largest_file, path.stat().st_size)
        found.files.append(path.name)
    for name, file in expected.items():
        if name not in held[file]:
            raise CheckpointError(
                f"{file}: tensor {name[:120]!r} is missing, though {index} says it is there"
            )
    return found


def _read_pytorch(files: list[Path]) -> _Weights:
    found = _Weights("pytorch")
    for path in files:
        size = path.stat().st_size
        if size == 0:
            raise CheckpointError(f"{path.name}: empty file")
        found.by_dtype["?"] += size
        found.largest_file = max(found.largest_file, size)
        found.files.append(path.name)
    return found


# --- config.json -----------------------------------------------------------------------------------------


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_HEADER_BYTES:
            raise CheckpointError(f"{path.name}: larger than {MAX_HEADER_BYTES} bytes")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path.name}: missing in the model's directory") from None
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error.strerror}") from None
    return parse_json_object(raw, path.name)


class _Config:
    """config.json with the language model's part in front and transformers' defaults behind."""

    def __init__(self, raw: dict[str, Any]) -> None:
        self.top = raw
        text = raw.get("text_config")
        self.text: dict[str, Any] = text if isinstance(text, dict) else raw
        self.top_type = self._type(raw, "")
        # a composite config may leave its text part's type to the class: gemma3 -> gemma3_text
        self.type = self._type(self.text, f"{self.top_type}_text")
        self._defaults = CLASS_DEFAULTS.get(self.type, {})

    @staticmethod
    def _type(part: Mapping[str, Any], default: str) -> str:
        value = part.get("model_type", default)
        return value if isinstance(value, str) else default

    def get(self, key: str) -> Any:
        value = self.text.get(key)
        # an explicit null means "none" for a window but "the default" elsewhere
        if key in self.text and (value is not None or key == "sliding_window"):
            return value
        return self._defaults.get(key)

    def size(self, *keys: str) -> int | None:
        """A positive whole number under the first of ``keys`` that is there."""
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MAX_DIMENSION:
                raise CheckpointError(f"config.json: {key} is {str(value)[:40]!r}, not a whole number")
            if value > 0:
                return value
        return None

    def need(self, *keys: str) -> int:
        value = self.size(*keys)
        if value is None:
            raise CheckpointError(f"config.json: no {keys[0]}")
        return value

    @property
    def tied(self) -> bool:
        # vLLM reads the outer value; only a composite config without one defers to its text part
        for part, kind in ((self.top, self.top_type), (self.text, self.type)):
            value = part.get("tie_word_embeddings", CLASS_DEFAULTS.get(kind, {}).get("tie_word_embeddings"))
            if value is not None:
                return bool(value)
        return False


def _facts(raw: dict[str, Any], weights: _Weights) -> CheckpointFacts:
    config = _Config(raw)
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else ""
    layers = config.need("num_hidden_layers", "n_layer", "num_layers")
    hidden = config.need("hidden_size", "n_embd", "d_model")
    heads = config.size("num_attention_heads", "n_head")
    kv_heads, head_dim, parts = config.size("num_key_value_heads") or heads, config.size("head_dim"), 2
    if head_dim is None and heads is not None:
        head_dim = hidden // heads
    latent = config.size("kv_lora_rank")
    if latent is not None:
        kv_heads, head_dim, parts = 1, latent + (config.size("qk_rope_head_dim") or 0), 1
    sliding, window, recurrent = _layer_kinds(config, layers)
    quantization = raw.get("quantization_config") or config.text.get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    dtype = next(
        (
            d
            for key in ("dtype", "torch_dtype")
            for part in (raw, config.text)
            if isinstance(d := part.get(key), str)
        ),
        None,
    )
    dtype = dtype.removeprefix("torch.") if dtype is not None else None
    by_dtype = dict(weights.by_dtype)
    if "?" in by_dtype and method is None and (stored := _TORCH_TO_SAFETENSORS.get(dtype or "")):
        by_dtype[stored] = by_dtype.pop("?")
    return CheckpointFacts(
        architecture=architecture if isinstance(architecture, str) else "",
        model_type=config.top_type,
        weights_by_dtype=by_dtype,
        storage=weights.storage,
        dtype=dtype,
        quantization=method if isinstance(method, str) else None,
        hidden_size=hidden,
        intermediate_size=config.size("intermediate_size", "n_inner"),
        vocab_size=config.size("vocab_size"),
        num_layers=layers,
        num_heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        kv_parts=parts,
        sliding_layers=sliding,
        sliding_window=window,
        recurrent_layers=recurrent,
        max_model_len=_max_model_len(config),
        tie_word_embeddings=config.tied,
        head_stored=any(name.endswith(_HEAD_SUFFIXES) for name in weights.names),
        largest_tensor=weights.largest_tensor,
        largest_file=weights.largest_file,
        vision_tower=isinstance(raw.get("vision_config"), dict),
        files=tuple(weights.files),
    )


def _layer_kinds(config: _Config, layers: int) -> tuple[int, int | None, int]:
    """(sliding layers, their window, recurrent layers), as vLLM builds them."""
    kinds = config.get("layer_types")
    window = config.size("sliding_window")
    if isinstance(kinds, list) and kinds:
        counted = Counter(str(kind) for kind in kinds)
        chunked = counted["chunked_attention"]
        attention = counted["full_attention"] + counted["sliding_attention"] + chunked
        if chunked:
            window = max(window or 0, config.size("attention_chunk_size") or 0) or None
        sliding = counted["sliding_attention"] + chunked if window is not None else 0
        return sliding, window if sliding else None, len(kinds) - attention
    if config.get("use_sliding_window") is False or (
        config.type == "qwen2" and not config.get("use_sliding_window")
    ):
        window = None  # Qwen2 keeps a window in its file that is off unless asked for
    if window is None:
        return 0, None, 0
    pattern = config.size("sliding_window_pattern") or _SLIDING_PATTERN.get(config.type)
    return (layers - layers // pattern if pattern else layers), window, 0


def _max_model_len(config: _Config) -> int | None:
    """vLLM's own default (``vllm/config/model.py:_get_and_verify_max_len``), less the tokenizer's cap."""
    length = config.size("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if length is None or not isinstance(rope, dict):
        return length
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    kinds = {
        part.get("rope_type", part.get("type"))
        for part in parts
        if isinstance(part.get("rope_type", part.get("type")), str)
    }
    if "longrope" in kinds or "su" in kinds:
        return config.size("original_max_position_embeddings") or length
    if kinds & {"linear", "dynamic"} and "gemma3" not in config.top_type and "gemma3" not in config.type:
        factors = [f for part in parts if isinstance(f := part.get("factor"), int | float) and 1 <= f <= 1024]
        return int(length * max(factors, default=1))
    return length
