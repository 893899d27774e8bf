# SPDX-License-Identifier: Apache-2.0
"""Vectors of texts that were encoded before: a least-recently-used cache, optionally kept on disk.

An entry's key is a 16-byte BLAKE2b digest of the encoder's version and the normalised text, so neither memory
nor disk holds a prompt. On disk the cache is one safetensors file: for each width `d` the arrays `keys.d`
(uint8 [n, 16]), `ages.d` (int64 [n], 0 the least recently used of all) and `vectors.d` (float32 [n, d]), and
`checksum` (uint8 [16]) over all of them. A file that is anything else is ignored and later written over.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import tempfile
import threading
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from vllm_axion.serving.config_faults import open_to_others

logger = logging.getLogger("vllm_axion.router")

Vectors = NDArray[np.float32]

DEFAULT_ENTRIES = 20_000
HEAD_CHARS, TAIL_CHARS = 768, 256  # what is read of a long text: about what small encoders take
KEY_BYTES = 16
FILE_NAME = "router-embeddings.safetensors"
_WIDEST = 65_536  # of a vector; more is not an embedding


class EncoderError(RuntimeError):
    """An encoder gave no usable vectors. The message is one line without any text of a user."""


class CanEncode(Protocol):
    """What the cache asks of an encoder; see `text_encoders.TextEncoder`."""

    @property
    def version(self) -> str:
        """Everything that decides the vectors: texts of one version have one vector."""

    async def encode(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, dim], one row a text. Raises EncoderError."""


def normalise(text: str) -> str:
    """What encoders get to see: NFC, one space for any white space, nothing unprintable, bounded length."""
    text = text.strip()
    if len(text) > HEAD_CHARS + 1 + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"
    # Half surrogate pairs (which cannot be sent), NUL and marks of writing direction go.
    kept = "".join(c if c.isprintable() else " " if c.isspace() else "" for c in text)
    return " ".join(unicodedata.normalize("NFC", kept).split())


def key_of(version: str, normalised: str) -> bytes:
    """The digest an entry is found by."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    name = version.encode("utf-8", "replace")
    digest.update(len(name).to_bytes(8, "little") + name + normalised.encode("utf-8", "replace"))
    return digest.digest()


@dataclass(frozen=True)
class Encoded:
    """`vectors` float32 [n, dim] in the order asked; `hits`: which of them needed no encoding."""

    vectors: Vectors
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class CacheStats:
    """`bytes` are those of vectors and keys; a hit is a text that needed no encoding."""

    entries: int
    max_entries: int
    bytes: int
    hits: int
    misses: int
    evictions: int
    persistent: bool


class EmbeddingCache:
    """Thread-safe; each look-up and each insertion is O(1)."""

    def __init__(self, max_entries: int = DEFAULT_ENTRIES, path: Path | None = None) -> None:
        """`max_entries` 0 keeps nothing. With `path` the cache begins with that file's entries and `save`
        writes them; a file that cannot be trusted or read is ignored with one line in the log."""
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._rows: OrderedDict[bytes, Vectors] = OrderedDict()
        self._max_entries = max_entries
        self._path = path
        self._bytes = self._hits = self._misses = self._evictions = 0
        self._unsaved = False
        if path is not None and max_entries:
            for key, row in _read(path):
                self._put(key, row)
            self._unsaved = False
            self._evictions = 0

    def look_up(self, version: str, texts: Sequence[str]) -> list[Vectors | None]:
        """The vector [dim] of each normalised text, None where there is none; counts hits and misses."""
        keys = [key_of(version, text) for text in texts]
        with self._lock:
            found = [self._get(key) for key in keys]
            missed = sum(row is None for row in found)
            self._misses += missed
            self._hits += len(found) - missed
        return found

    def store(self, version: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Keep the vectors [n, dim] of normalised texts."""
        # Copies: a row of the batch would keep the whole batch in memory.
        rows = [np.array(vector, np.float32) for vector in vectors]
        keys = [key_of(version, text) for text in texts]
        with self._lock:
            for key, row in zip(keys, rows, strict=True):
                self._put(key, row)

    async def encode(self, encoder: CanEncode, texts: Sequence[str]) -> Encoded:
        """Vectors of normalised texts, in order: known ones from the cache, each other text encoded once.

        Raises EncoderError, also for an encoder whose answer has the wrong shape or holds no finite numbers;
        then nothing is stored."""
        version = encoder.version
        unique = list(dict.fromkeys(texts))
        rows = dict(zip(unique, self.look_up(version, unique), strict=True))
        missing = [text for text, row in rows.items() if row is None]
        fresh = set(missing)
        if missing:
            made = checked(await encoder.encode(missing), len(missing))
            width = next((row.size for row in rows.values() if row is not None), made.shape[1])
            if width != made.shape[1]:
                # The service behind one name changed its model: what was kept is of no use any more.
                missing = unique
                fresh = set(unique)
                made = checked(await encoder.encode(missing), len(missing))
            self.store(version, missing, made)
            rows.update(zip(missing, made, strict=True))
        with self._lock:
            self._hits += len(texts) - len(unique)  # the same text again in one batch
        hits = []
        for text in texts:
            hits.append(text not in fresh)
            fresh.discard(text)
        found = [row for row in (rows[text] for text in texts) if row is not None]
        return Encoded(np.stack(found) if found else np.empty((0, 0), np.float32), tuple(hits))

    def stats(self) -> CacheStats:
        """Counters since the start, and what is kept now."""
        with self._lock:
            return CacheStats(
                len(self._rows),
                self._max_entries,
                self._bytes,
                self._hits,
                self._misses,
                self._evictions,
                self._path is not None,
            )

    def resize(self, max_entries: int) -> None:
        """A new bound; the least recently used entries beyond it go."""
        with self._lock:
            self._max_entries = max_entries
            self._shrink()

    def clear(self) -> None:
        """Forget every entry; counters stay."""
        with self._lock:
            self._rows.clear()
            self._bytes = 0
            self._unsaved = True

    def save(self) -> bool:
        """Write the file if there is one to write and something changed. Never raises; what stands in the
        way is one line in the log. Returns whether it was written."""
        if self._path is None:
            return False
        with self._saving:
            with self._lock:
                if not self._unsaved:
                    return False
                rows = list(self._rows.items())
                self._unsaved = False
            try:
                _write(self._path, rows)
            except OSError as error:
                logger.warning("the embedding cache could not be written: %s", error.strerror or "I/O error")
                with self._lock:
                    self._unsaved = True
                return False
        return True

    def _get(self, key: bytes) -> Vectors | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def _put(self, key: bytes, row: Vectors) -> None:
        row.flags.writeable = False
        old = self._rows.pop(key, None)
        if old is not None:
            self._bytes -= old.nbytes + KEY_BYTES
        self._rows[key] = row
        self._bytes += row.nbytes + KEY_BYTES
        self._unsaved = True
        self._shrink()

    def _shrink(self) -> None:
        while len(self._rows) > self._max_entries:
            _, row = self._rows.popitem(last=False)
            self._bytes -= row.nbytes + KEY_BYTES
            self._evictions += 1


def checked(vectors: Any, count: int) -> Vectors:
    """`vectors` as float32 [count, dim]. Raises EncoderError for any other shape and for NaN and infinity."""
    try:
        made = np.asarray(vectors, np.float32)
    except (TypeError, ValueError, OverflowError):
        raise EncoderError("the encoder's vectors are not numbers of one length") from None
    if made.ndim != 2 or made.shape[0] != count or not 0 < made.shape[1] <= _WIDEST:
        shape = "x".join(map(str, made.shape))
        raise EncoderError(f"the encoder answered {shape or 'one number'} for {count} texts")
    if not np.isfinite(made).all():
        raise EncoderError("the encoder's vectors hold NaN or infinity")
    return made


# ---------------------------------------------------------------- the file


def _write(path: Path, rows: Sequence[tuple[bytes, Vectors]]) -> None:
    by_width: dict[int, list[int]] = {}
    for age, (_, row) in enumerate(rows):
        by_width.setdefault(row.size, []).append(age)
    arrays: dict[str, NDArray[Any]] = {}
    for width, ages in by_width.items():
        keys = b"".join(rows[age][0] for age in ages)
        arrays[f"keys.{width}"] = np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES)
        arrays[f"ages.{width}"] = np.array(ages, np.int64)
        arrays[f"vectors.{width}"] = np.stack([rows[age][1] for age in ages])
    arrays["checksum"] = _checksum(arrays)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # mkstemp makes it 0600 and ours before a byte is in it; a reader sees the old file or the new, whole.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(safetensors.numpy.save(arrays))
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def _read(path: Path) -> list[tuple[bytes, Vectors]]:
    """The file's entries, least recently used first; none, and a line in the log, if it cannot be used."""
    try:
        return _entries(safetensors.numpy.load(_bytes_of_own_file(path)))
    except FileNotFoundError:
        return []
    except Exception as error:  # whatever a parser makes of a broken file
        reason = error if isinstance(error, _UnusableError) else "it is damaged or of another program"
        logger.warning("the embedding cache %s is not used: %s", path.name, reason)
        return []


class _UnusableError(Exception):
    pass


def _bytes_of_own_file(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _UnusableError(error.strerror or "cannot be opened") from None
    with open(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise _UnusableError("it is not a regular file")
        if info.st_uid != os.getuid():
            raise _UnusableError("it belongs to another user")
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or open_to_others(path, path, info):
            raise _UnusableError("others on this machine may change it")
        return file.read()


def _entries(arrays: Mapping[str, NDArray[Any]]) -> list[tuple[bytes, Vectors]]:
    widths = [name.removeprefix("vectors.") for name in arrays if name.startswith("vectors.")]
    expected = {"checksum"} | {f"{kind}.{w}" for w in widths for kind in ("keys", "ages", "vectors")}
    if set(arrays) != expected or arrays["checksum"].tobytes() != _checksum(arrays).tobytes():
        raise _UnusableError("it is damaged or of another program")
    aged: list[tuple[int, bytes, Vectors]] = []
    for width in widths:
        keys, ages, vectors = (arrays[f"{kind}.{width}"] for kind in ("keys", "ages", "vectors"))
        count = len(ages)
        sound = keys.shape == (count, KEY_BYTES) and vectors.shape == (count, int(width))
        if not sound or vectors.dtype != np.float32 or not np.isfinite(vectors).all():
            raise _UnusableError("it is damaged or of another program")
        aged += [
            (int(age), key.tobytes(), np.array(row, np.float32))
            for age, key, row in zip(ages, keys, vectors, strict=True)
        ]
    return [(key, row) for _, key, row in sorted(aged, key=lambda entry: entry[0])]


def _checksum(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        if name != "checksum":
            digest.update(f"{name} {arrays[name].shape} {arrays[name].dtype}".encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return np.frombuffer(digest.digest(), np.uint8)
