# SPDX-License-Identifier: Apache-2.0
"""The trained classifier: fed in pieces it says what it says of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving.ngram_classifier import Judgement, NgramClassifier, TextAccumulator, distinct, softmax
from vllm_axion.serving.ngram_features import HEAD_CHARS, TAIL_CHARS

WORDS = st.sampled_from(
    [
        *("hola", "función", "FUNCIÓN", "def f(x):", "\n    return x", "¿qué", "c ++", "como se dice", " "),
        *(
            "\n\n\t",
            "中文字",
            "e\u0301",
            "x" * 70,
            "\u0301",
            "👍",
            "--flag",
            "ﬃ",
            "\ud83d",
            "\x00",
            "node . js",
        ),
        *("Straße", "´"),
    ]
)
TEXTS = st.lists(WORDS | st.text(max_size=12), max_size=30).map(" ".join) | st.lists(WORDS, max_size=30).map(
    "".join
)


@pytest.fixture(scope="module")
def classifier() -> NgramClassifier:
    return NgramClassifier()


def same(one: Judgement | None, other: Judgement | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool((one.chances == other.chances).all())


def fed(classifier: NgramClassifier, parts: list[str]) -> TextAccumulator:
    accumulator = classifier.accumulator()
    for part in parts:
        accumulator.feed(part)
    return accumulator


@settings(max_examples=200, deadline=None)
@given(text=TEXTS, data=st.data())
def test_any_split_of_a_text_is_judged_like_the_whole_bit_for_bit(
    classifier: NgramClassifier, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert same(fed(classifier, parts).judge(), classifier.judge(text))


@pytest.mark.parametrize(
    "size", [HEAD_CHARS - 1, HEAD_CHARS, HEAD_CHARS + 1, HEAD_CHARS + TAIL_CHARS + 7, 20_000]
)
def test_long_texts_too(classifier: NgramClassifier, size: int) -> None:
    text = ("Traduce este párrafo: " + "the quick brown fox, por cierto " * 1000)[:size]
    for step in (997, 3000):
        parts = [text[at : at + step] for at in range(0, size, step)]
        assert same(fed(classifier, parts).judge(), classifier.judge(text))


def test_judging_in_between_changes_nothing(classifier: NgramClassifier) -> None:
    text = "Escribe una función en Python que sume dos números"
    accumulator = classifier.accumulator()
    for end in range(1, len(text) + 1):
        accumulator.feed(text[end - 1])
        assert same(accumulator.judge(), classifier.judge(text[:end]))


def test_cleared_it_begins_anew(classifier: NgramClassifier) -> None:
    accumulator = fed(classifier, ["una frase cualquiera ", "y más " * 2000])
    accumulator.clear()
    assert accumulator.judge() is None
    accumulator.feed("hola")
    assert same(accumulator.judge(), classifier.judge("hola"))


def test_only_head_and_tail_of_a_long_text_are_read(classifier: NgramClassifier) -> None:
    filler = "palabra " * 130_000
    middle = filler[:500_000] + " traduce al alemán este texto " + filler[500_000:]
    assert len(middle) % 8 == len(filler + " traduce al alemán este texto ") % 8
    judged = classifier.judge(middle)
    assert judged is not None and "translation" not in judged.concepts


def test_accents_left_out_change_little(classifier: NgramClassifier) -> None:
    plain, accented = classifier.judge("QUE ES UNA FUNCION"), classifier.judge("¿qué es una función?")
    assert plain is not None and accented is not None
    assert plain.chances.argmax() == accented.chances.argmax()


@pytest.mark.parametrize("text", ["", "123", "…", "🙂", "\x00", "\ud83d", " \n\t"])
def test_a_text_without_letters_is_not_judged(classifier: NgramClassifier, text: str) -> None:
    assert classifier.judge(text) is None
    assert fed(classifier, list(text)).judge() is None


def test_chances_sum_to_one_and_telling_words_come_from_the_text(classifier: NgramClassifier) -> None:
    judged = classifier.judge("Arregla este script de bash, por favor")
    assert judged is not None
    assert judged.chances.sum() == pytest.approx(1.0)
    told = classifier.telling_words(judged, "coding")
    assert "bash" in told and set(told) <= {"arregla", "este", "script", "de", "bash", "por", "favor"}
    assert classifier.telling_words(judged, "no such domain") == ()


def test_sums_of_long_texts_stay_within_their_integers(classifier: NgramClassifier) -> None:
    assert classifier.model.weights.dtype == np.int16
    rng = np.random.default_rng(0)
    noise = "".join(map(chr, rng.integers(0x4E00, 0x9FFF, 4096)))
    judged = classifier.judge(noise)
    assert judged is not None and judged.sums.scores[:, -1].sum() > 0


def test_distinct_columns_come_once_and_in_order() -> None:
    assert distinct(np.array([5, 3, 5, 0])).tolist() == [0, 3, 5]
    assert distinct(np.empty(0, np.int64)).size == 0


def test_softmax_sums_to_one_along_the_last_axis() -> None:
    assert softmax(np.array([[0.0, 1000.0], [1.0, 1.0]])) == pytest.approx(np.array([[0.0, 1.0], [0.5, 0.5]]))
