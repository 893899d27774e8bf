# SPDX-License-Identifier: Apache-2.0
"""The vectorised n-grams against plain loops, and the counts against what the text shows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving.ngram_features import (
    AT,
    CHUNK_CHARS,
    CONTEXT,
    GRAM_BUCKETS,
    HEAD_CHARS,
    LONGEST_GRAM,
    START,
    TAIL_CHARS,
    WORD_BUCKETS,
    pieces,
    settled,
    tokens,
    windows,
)
from vllm_axion.serving.router_lexicon import strip_accents

MASK = 0xFFFFFFFF


def mixed(value: int, salt: int) -> int:
    value ^= salt * 0x9E3779B1 & MASK
    value ^= value >> 15
    value = value * 0x85EBCA6B & MASK
    value ^= value >> 13
    value = value * 0xC2B2AE35 & MASK
    return value ^ value >> 16


def expected_columns(text: str) -> list[int]:
    """The definition, one n-gram at a time."""
    found = tokens(text)
    plain = [strip_accents(token) or token for token in found]
    accented = [token for token, bare in zip(found, plain, strict=True) if token != bare]
    columns = []
    for word in plain + accented:
        padded = [ord(char) for char in f" {word} "]
        for n in range(1, LONGEST_GRAM + 1):
            for start in range(len(padded) - n + 1):
                gram = padded[start : start + n]
                value = 0
                for point in gram:
                    value = (value * 0x01000193 + point) & MASK
                if gram != [32]:
                    columns.append(mixed(value, n) % GRAM_BUCKETS)

    def whole(word: str) -> int:
        value, power = 0, 0x01000193
        for char in word:
            value = (value + ord(char) * power) & MASK
            power = power * 0x01000193 & MASK
        return value

    columns += [GRAM_BUCKETS + mixed(whole(word), 11) % WORD_BUCKETS for word in plain + accented]
    line = [whole(word) for word in (*START, *plain)]
    for at in range(CONTEXT, len(line)):
        third, second, last = line[at - 2], line[at - 1], line[at]
        pair = (second * 0x01B3C6A7 + last) & MASK
        three = (third * 0x7FEB352D + pair) & MASK
        gap = (third * 0x2C1B3C6D + last) & MASK
        for salt, value in ((12, pair), (13, three), (14, gap)):
            columns.append(GRAM_BUCKETS + mixed(value, salt) % WORD_BUCKETS)
    return columns


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["hola", "función", "x", "C++", "日本語", "a_b(1)", "\n  if"]), max_size=8))
def test_columns_are_those_of_plain_loops(words: list[str]) -> None:
    text = " ".join(words)
    assert sorted(pieces(text).columns.tolist()) == sorted(expected_columns(text))


def test_each_column_belongs_to_a_token_of_the_text() -> None:
    read = pieces("¿cómo funciona tcp?")
    assert read.columns.size == read.token_of.size
    assert set(read.token_of.tolist()) == set(range(len(read.tokens)))


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("def f():\n    return 1", "indent"),
        ("```", "fence"),
        ("print(x)", "call"),
        ("getValue", "camel"),
        ("get_value", "snake"),
        ("a == b", "operator"),
        ("ls --all", "option"),
        ("cat /etc/hosts", "path"),
        ("SELECT", "capitals"),
        ("¿qué?", "question"),
        ("end;", "closing"),
    ],
)
def test_the_look_of_code_is_counted(text: str, shape: str) -> None:
    assert pieces(text).counts[AT[shape]] >= 1
    assert pieces("una frase normal y corriente").counts[AT[shape]] == 0


def test_function_words_and_scripts_are_counted() -> None:
    counts = pieces("the house está in Москва").counts
    assert (counts[AT["english"]], counts[AT["spanish"]], counts[AT["words"]]) == (2, 1, 5)
    assert counts[AT["other script"]] == 6
    assert pieces("ção").counts[AT["strange letters"]] == 2


def test_settled_is_what_no_later_text_changes() -> None:
    assert settled("hola mun") == 4
    assert settled("hola mun ") == 8
    assert settled("") == settled("hola") == 0
    assert settled("x" * CHUNK_CHARS) == 0
    assert settled("x" * (CHUNK_CHARS + 1)) == CHUNK_CHARS


def test_windows_are_head_and_tail_without_overlap() -> None:
    for size in (0, 10, HEAD_CHARS, HEAD_CHARS + 5, HEAD_CHARS + TAIL_CHARS + 1, 100_000):
        text = "".join(chr(65 + at % 26) for at in range(size))
        head, tail = windows(text)
        assert text.startswith(head) and text.endswith(tail)
        assert len(head) + len(tail) == min(size, HEAD_CHARS + TAIL_CHARS)
