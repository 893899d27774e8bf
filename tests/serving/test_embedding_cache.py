# SPDX-License-Identifier: Apache-2.0
"""The embedding cache against a plain list, from many threads, and from files of every wrong kind."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vllm_axion.serving.embedding_cache import (
    FILE_NAME,
    HEAD_CHARS,
    KEY_BYTES,
    TAIL_CHARS,
    EmbeddingCache,
    EncoderError,
    Vectors,
    checked,
    normalise,
)

DIM = 4
ANY_TEXT = st.text(st.characters(), max_size=40)


class HashEncoder:
    """Vectors that follow from the text alone; remembers what it was asked."""

    def __init__(self, version: str = "hash 1", dim: int = DIM) -> None:
        self.version = version
        self.dim = dim
        self.asked: list[list[str]] = []

    def vector(self, text: str) -> Vectors:
        digest = hashlib.blake2b(f"{self.version} {text}".encode(), digest_size=self.dim).digest()
        return np.frombuffer(digest, np.uint8).astype(np.float32)

    async def encode(self, texts: Sequence[str]) -> Vectors:
        self.asked.append(list(texts))
        return np.stack([self.vector(text) for text in texts])


def encode(cache: EmbeddingCache, encoder: HashEncoder, *texts: str) -> tuple[bool, ...]:
    encoded = asyncio.run(cache.encode(encoder, texts))
    assert np.array_equal(encoded.vectors, np.stack([encoder.vector(text) for text in texts]))
    return encoded.hits


# ---------------------------------------------------------------- look-up


class AgainstAList(RuleBasedStateMachine):
    """The cache does what a list does that is searched from one end to the other."""

    texts = st.sampled_from([f"text {n}" for n in range(9)])
    versions = st.sampled_from(["a", "b"])

    @initialize(bound=st.integers(0, 5))
    def begin(self, bound: int) -> None:
        self.bound = bound
        self.cache = EmbeddingCache(bound)
        self.encoders = {version: HashEncoder(version) for version in ("a", "b")}
        self.kept: list[tuple[str, str]] = []  # least recently used first
        self.hits = self.misses = self.evictions = 0

    @rule(version=versions, batch=st.lists(texts, min_size=1, max_size=7))
    def encode_a_batch(self, version: str, batch: list[str]) -> None:
        encoder = self.encoders[version]
        encoder.asked.clear()
        unique = list(dict.fromkeys(batch))
        known = [text for text in unique if (version, text) in self.kept]
        new = [text for text in unique if text not in known]
        hits = encode(self.cache, encoder, *batch)
        assert encoder.asked == ([new] if new else [])
        seen: set[str] = set()
        for text, hit in zip(batch, hits, strict=True):
            assert hit == (text in known or text in seen)
            seen.add(text)
        self.hits += len(batch) - len(new)
        self.misses += len(new)
        for text in [*known, *new]:
            if (version, text) in self.kept:
                self.kept.remove((version, text))
            self.kept.append((version, text))
        self.shrink()

    @rule(bound=st.integers(0, 5))
    def resize(self, bound: int) -> None:
        self.bound = bound
        self.cache.resize(bound)
        self.shrink()

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.kept.clear()

    def shrink(self) -> None:
        while len(self.kept) > self.bound:
            self.kept.pop(0)
            self.evictions += 1

    @invariant()
    def statistics_agree(self) -> None:
        stats = self.cache.stats()
        assert (stats.entries, stats.max_entries) == (len(self.kept), self.bound)
        assert (stats.hits, stats.misses, stats.evictions) == (self.hits, self.misses, self.evictions)
        assert stats.bytes == len(self.kept) * (4 * DIM + KEY_BYTES)


TestAgainstAList = AgainstAList.TestCase
TestAgainstAList.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_a_batch_of_known_and_new_texts_comes_back_in_order_and_encodes_the_new_ones_once() -> None:
    cache, encoder = EmbeddingCache(), HashEncoder()
    encode(cache, encoder, "b", "d")
    encoder.asked.clear()
    assert encode(cache, encoder, "a", "b", "a", "c", "d", "b") == (False, True, True, False, True, True)
    assert encoder.asked == [["a", "c"]]


def test_another_version_of_an_encoder_has_nothing_in_the_cache() -> None:
    cache = EmbeddingCache()
    encode(cache, HashEncoder("one"), "a")
    assert encode(cache, HashEncoder("two"), "a") == (False,)
    assert encode(cache, HashEncoder("one"), "a") == (True,)


def test_version_and_text_cannot_be_moved_into_each_other() -> None:
    cache = EmbeddingCache()
    encode(cache, HashEncoder("one two"), "three")
    assert encode(cache, HashEncoder("one"), " twothree") == (False,)


def test_a_service_that_changed_its_width_is_asked_again_for_what_was_known() -> None:
    cache = EmbeddingCache()
    encode(cache, HashEncoder("same", 4), "a", "b")
    assert encode(cache, HashEncoder("same", 8), "a", "c") == (False, False)


def test_what_was_handed_out_cannot_change_what_is_kept() -> None:
    cache, encoder = EmbeddingCache(), HashEncoder()
    first = asyncio.run(cache.encode(encoder, ["a"])).vectors
    first[:] = 0
    assert encode(cache, encoder, "a") == (True,)
    (kept,) = cache.look_up(encoder.version, ["a"])
    assert kept is not None
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1


@pytest.mark.parametrize(
    "answer",
    [
        np.zeros((2, 3)), np.zeros(3), np.zeros((1, 0)), [[1.0, "x"]], [[1.0], [1.0, 2.0]],
        [[float("nan")]], [[float("inf")]], None, [[None]], [[1e300]],
    ],
    ids=repr,
)  # fmt: skip
def test_an_answer_that_is_not_one_row_of_numbers_a_text_is_an_error_and_is_not_kept(answer: object) -> None:
    class Wrong(HashEncoder):
        async def encode(self, texts: Sequence[str]) -> Vectors:
            return answer  # type: ignore[return-value]

    cache = EmbeddingCache()
    with np.errstate(over="ignore"), pytest.raises(EncoderError):
        asyncio.run(cache.encode(Wrong(), ["a"]))
    assert cache.stats().entries == 0


def test_many_threads_lose_no_count_and_never_exceed_the_bound() -> None:
    cache, encoder = EmbeddingCache(50), HashEncoder()
    texts = [f"text {n}" for n in range(120)]
    wrong: list[str] = []
    asked: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(300):
            batch = chance.choices(texts, k=chance.randrange(1, 6))
            asked.append(len(batch))
            for text, row in zip(batch, cache.look_up(encoder.version, batch), strict=True):
                if row is None:
                    cache.store(encoder.version, [text], encoder.vector(text)[None])
                elif not np.array_equal(row, encoder.vector(text)):
                    wrong.append(text)
            if cache.stats().entries > 50:
                wrong.append("too many")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    stats = cache.stats()
    assert stats.entries == 50
    assert stats.bytes == 50 * (4 * DIM + KEY_BYTES)
    assert stats.hits + stats.misses == sum(asked)


def test_no_prompt_stays_in_memory_or_on_disk(tmp_path: Path) -> None:
    cache, encoder = EmbeddingCache(path=tmp_path / FILE_NAME), HashEncoder()
    prompt = "my password is swordfish"
    encode(cache, encoder, prompt)
    cache.save()
    assert prompt not in repr(vars(cache))
    assert b"swordfish" not in (tmp_path / FILE_NAME).read_bytes()


# ---------------------------------------------------------------- normalising


@given(ANY_TEXT)
def test_a_normalised_text_is_printable_sendable_and_stays_as_it_is(text: str) -> None:
    found = normalise(text)
    assert found.isprintable()
    assert found.encode("utf-8").decode() == found
    assert normalise(found) == found
    assert normalise(f"\n {text}\t ") == found


def test_forms_of_the_same_text_are_one() -> None:
    assert normalise("ma\u0303na") == normalise("mãna")
    assert normalise(" a\u00a0 b\u3000\n\nc\x00\u202e ") == "a b c"
    assert normalise("a\ud800b\udfff") == "ab"


def test_a_megabyte_is_read_at_both_ends() -> None:
    found = normalise("start " + "x" * 1_000_000 + " end")
    assert found.startswith("start x") and found.endswith("x end")
    assert len(found) == HEAD_CHARS + 1 + TAIL_CHARS
    assert normalise(found) == found


# ---------------------------------------------------------------- the file


def filled(path: Path, *texts: str, dim: int = DIM) -> EmbeddingCache:
    cache = EmbeddingCache(path=path)
    encode(cache, HashEncoder(dim=dim), *texts)
    assert cache.save()
    return cache


def log_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "vllm_axion.router"]


def test_a_saved_cache_answers_after_a_restart_in_the_same_order_of_age(tmp_path: Path) -> None:
    path = tmp_path / "folder" / FILE_NAME
    cache = filled(path, "a", "b", "c")
    encode(cache, HashEncoder("wide", 8), "d")
    encode(cache, HashEncoder(), "a")
    assert cache.save()
    again = EmbeddingCache(2, path)
    assert again.stats().entries == 2
    assert (again.stats().hits, again.stats().misses, again.stats().evictions) == (0, 0, 0)
    assert encode(again, HashEncoder("wide", 8), "d") == (True,)
    assert encode(again, HashEncoder(), "a") == (True,)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [found.name for found in path.parent.iterdir()] == [FILE_NAME]


def test_an_open_umask_does_not_open_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        filled(tmp_path / FILE_NAME, "a")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    cache = filled(tmp_path / FILE_NAME, "a")
    assert not cache.save()
    assert not EmbeddingCache(path=tmp_path / FILE_NAME).save()
    assert not EmbeddingCache().save()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def write_nonsense(path: Path) -> None:
    path.write_bytes(b"\x80\x04cos\nsystem\n")


def write_tensors_of_others(path: Path) -> None:
    path.write_bytes(safetensors.numpy.save({"weight": np.zeros((2, 2), np.float32)}))


def open_to_all(path: Path) -> None:
    path.chmod(0o666)


def open_to_the_group(path: Path) -> None:
    path.chmod(0o660)


def turn_into_a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def turn_into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def turn_into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def open_its_folder(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize(
    "harm",
    [
        cut_short, flip_a_bit, write_nonsense, write_tensors_of_others, open_to_all, open_to_the_group,
        turn_into_a_link, turn_into_a_folder, turn_into_a_pipe, make_empty, open_its_folder,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_trusted_is_ignored_with_one_line(
    harm: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    filled(path, "a", "b")
    assert callable(harm)
    harm(path)
    with caplog.at_level(logging.WARNING, "vllm_axion.router"):
        cache = EmbeddingCache(path=path)
    assert cache.stats().entries == 0
    assert len(log_of(caplog)) == 1 and "is not used" in log_of(caplog)[0]
    assert str(tmp_path) not in log_of(caplog)[0]
    assert encode(cache, HashEncoder(), "a") == (False,)


def test_no_file_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EmbeddingCache(path=tmp_path / FILE_NAME)
    assert log_of(caplog) == []


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_raises_or_changes_a_vector(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("cache", numbered=True) / FILE_NAME
    filled(path, "a", "b")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    encode(EmbeddingCache(path=path), HashEncoder(), "a", "b")


def test_a_folder_that_cannot_be_made_costs_one_line_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "vllm_axion.router"):
        cache = EmbeddingCache(path=tmp_path / "file" / FILE_NAME)
        caplog.clear()
        encode(cache, HashEncoder(), "a")
        assert not cache.save()
    assert len(log_of(caplog)) == 1
    assert encode(cache, HashEncoder(), "a") == (True,)


def test_a_vector_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(EncoderError, match="2x3 for 1 texts"):
        checked(np.zeros((2, 3)), 1)
