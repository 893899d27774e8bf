# SPDX-License-Identifier: Apache-2.0
"""The JSON header of a safetensors file: names, types and sizes of its tensors, checked, without their data.

A file starts with 8 bytes of little-endian header length and that many bytes of JSON; the tensors follow
without gaps to the end of the file (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The safetensors library refuses larger headers (MAX_HEADER_SIZE); the other JSON files get the same bound.
MAX_HEADER_BYTES = 100_000_000
# Bits per element, by the name safetensors gives the type.
DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E4M3": 8, "F8_E4M3FNUZ": 8, "F8_E5M2": 8, "F8_E5M2FNUZ": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be served: one line, naming the file (never its directory) and the fault."""


def read_safetensors_header(path: Path) -> dict[str, tuple[str, int, int]]:
    """Tensors of one file as name -> (dtype, elements, bytes), from its header alone.

    Checks what the library's own reader checks.

    Raises:
        CheckpointError: unreadable, truncated or corrupt.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise CheckpointError(
                    f"{path.name}: only {size} bytes long, not a safetensors file (truncated?)"
                )
            (length,) = struct.unpack("<Q", prefix)
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(
                    f"{path.name}: header length {length} is over the limit of {MAX_HEADER_BYTES} bytes "
                    "(not a safetensors file?)"
                )
            if 8 + length > size:
                raise CheckpointError(
                    f"{path.name}: truncated: its header ends at byte {8 + length}, the file at byte {size}"
                )
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read: {error.strerror}") from None
    header = parse_json_object(raw, f"{path.name}: header")
    header.pop("__metadata__", None)
    tensors: dict[str, tuple[str, int, int]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, elements, begin, end = _read_entry(path.name, name, entry)
        tensors[name] = (dtype, elements, end - begin)
        spans.append((begin, end, name))
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            fault = (
                "overlaps the one before it"
                if begin < position
                else f"leaves a hole of {begin - position} bytes before it"
            )
            raise CheckpointError(f"{path.name}: corrupt header: tensor {name[:120]!r} {fault}")
        position = end
    expected = 8 + length + position
    if expected > size:
        raise CheckpointError(
            f"{path.name}: truncated: its tensors end at byte {expected}, the file at byte {size}"
        )
    if expected < size:
        raise CheckpointError(f"{path.name}: corrupt: {size - expected} bytes after the last tensor")
    return tensors


def _read_entry(file: str, name: str, entry: Any) -> tuple[str, int, int, int]:
    where = f"{file}: corrupt header: tensor {name[:120]!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where} has no description")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{where} has the unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or not all(_is_size(n) for n in shape):
        raise CheckpointError(f"{where} has no valid shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(n) for n in offsets):
        raise CheckpointError(f"{where} has no valid data_offsets")
    begin, end = offsets
    elements = math.prod(shape) if len(shape) <= 64 else -1
    if begin > end or elements < 0 or elements * DTYPE_BITS[dtype] != (end - begin) * 8:
        raise CheckpointError(f"{where}: data_offsets [{begin}, {end}] do not fit {dtype} {str(shape)[:80]}")
    return dtype, elements, begin, end


def _is_size(value: Any) -> bool:
    # bool is an int to Python, not to safetensors
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def parse_json_object(raw: bytes, where: str) -> dict[str, Any]:
    """A JSON object; `where` opens the message if it is not one. Raises CheckpointError."""
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{where} is not valid JSON (truncated or corrupt?)") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object")
    return value
