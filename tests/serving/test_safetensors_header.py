# SPDX-License-Identifier: Apache-2.0
"""Headers as the safetensors library writes them, and every way in which a file can be broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vllm_axion.serving.safetensors_header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    CheckpointError,
    read_safetensors_header,
)

TENSORS: dict[str, np.ndarray[Any, Any]] = {
    "a": np.ones((3, 4), np.float32),
    "b": np.ones((5,), np.float16),
    "c": np.zeros((0, 7), np.int64),
}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, str(path), metadata={"format": "np"})
    return path


def test_reads_what_the_library_wrote(good: Path) -> None:
    assert read_safetensors_header(good) == {
        "a": ("F32", 12, 48),
        "b": ("F16", 5, 10),
        "c": ("I64", 0, 0),
    }


def test_every_dtype_of_the_library_has_its_size(tmp_path: Path) -> None:
    """A file of one tensor of eight elements per type is read by the library and by us alike."""
    for dtype, bits in DTYPE_BITS.items():
        path = write(tmp_path / f"{dtype}.safetensors", {"t": entry(0, bits, dtype, [8])}, bytes(bits))
        assert read_safetensors_header(path) == {"t": (dtype, 8, bits)}
        with safe_open(str(path), "np") as file:
            assert file.get_slice("t").get_dtype() == dtype


@pytest.mark.parametrize("keep", [0, 7, 8, 20, -1])
def test_truncated_file_is_refused_by_name_and_without_its_directory(good: Path, keep: int) -> None:
    good.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"^model\.safetensors: .*trunc") as error:
        read_safetensors_header(good)
    assert str(good.parent) not in str(error.value) and "\n" not in str(error.value)


BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "bytes after the last tensor": ({"a": entry(0, 4)}, bytes(5), "1 bytes after the last tensor"),
    "hole": ({"a": entry(0, 4), "b": entry(6, 8)}, bytes(8), "hole of 2 bytes"),
    "hole at the start": ({"a": entry(2, 4)}, bytes(4), "hole of 2 bytes"),
    "overlap": ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6), "overlaps"),
    "offsets past the end": ({"a": entry(0, 400)}, bytes(4), "tensors end at byte"),
    "offsets reversed": ({"a": entry(4, 0, shape=[4])}, bytes(4), "do not fit"),
    "offsets not the shape's": ({"a": entry(0, 4, "F32", [2])}, bytes(4), "do not fit"),
    "negative offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [-1, 0]}}, b"", "data_offsets"),
    "one offset": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1]}}, b"", "data_offsets"),
    "boolean offset": (
        {"a": {"dtype": "U8", "shape": [1], "data_offsets": [False, True]}},
        b"x",
        "data_offsets",
    ),
    "negative shape": ({"a": entry(0, 4, shape=[-4])}, bytes(4), "shape"),
    "float shape": ({"a": {"dtype": "U8", "shape": [4.0], "data_offsets": [0, 4]}}, bytes(4), "shape"),
    "huge shape": ({"a": entry(0, 4, shape=[1 << 62] * 60)}, bytes(4), "do not fit"),
    "unknown dtype": ({"a": entry(0, 4, "F5")}, bytes(4), "unknown dtype"),
    "no description": ({"a": 4}, b"", "no description"),
    "a list": ([1, 2], b"", "not a JSON object"),
    "not JSON": (b"{'a': 1}", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "too deep": (b"[" * 200_000, b"", "not valid JSON"),
    "endless number": (b'{"a": ' + b"9" * 10_000 + b"}", b"", "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_header_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    header, data, message = BROKEN[case]
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as error:
        read_safetensors_header(path)
    assert str(error.value).startswith("model.safetensors: ") and "\n" not in str(error.value)


def test_header_length_of_terabytes_reads_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match=f"over the limit of {MAX_HEADER_BYTES} bytes"):
        read_safetensors_header(path)


def test_html_page_in_place_of_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"<!DOCTYPE html><html>access denied</html>")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_safetensors_header(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^gone\.safetensors: cannot be read: No such file"):
        read_safetensors_header(tmp_path / "gone.safetensors")


def library_reads(path: Path) -> bool:
    try:
        with safe_open(str(path), "np"):
            return True
    except SafetensorError:
        return False


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "F5"]) | JSON,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 32), min_size=2, max_size=2) | JSON,
    }
)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(
    header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3) | JSON, data=st.binary(max_size=32)
)
def test_any_header_is_read_or_refused_with_a_checkpoint_error(
    tmp_path: Path, header: Any, data: bytes
) -> None:
    path = write(tmp_path / "fuzz.safetensors", header, data)
    try:
        tensors = read_safetensors_header(path)
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert sum(size for _, _, size in tensors.values()) == len(data)


@FUZZ
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_with_a_checkpoint_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fuzz.safetensors"
    path.write_bytes(content)
    try:
        read_safetensors_header(path)
    except CheckpointError:
        assert not library_reads(path)


@FUZZ
@given(position=st.integers(0, 400), byte=st.integers(0, 255))
def test_what_the_library_refuses_after_one_flipped_byte_is_refused_here(
    tmp_path: Path, position: int, byte: int
) -> None:
    path = tmp_path / "flipped.safetensors"
    save_file(TENSORS, str(path))
    content = bytearray(path.read_bytes())
    content[position % len(content)] = byte
    path.write_bytes(content)
    try:
        read_safetensors_header(path)
    except CheckpointError:
        return
    assert library_reads(path)
