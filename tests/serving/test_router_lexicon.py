# SPDX-License-Identifier: Apache-2.0
"""Concepts are found as whole words, as beginnings, as phrases, and inside scripts without spaces."""

from __future__ import annotations

import pytest

from vllm_axion.serving.ngram_features import AT, pieces
from vllm_axion.serving.router_lexicon import CONCEPTS, concepts_of_word

NARROW = ("coding", "picture", "translation", "language name")


def named(text: str) -> set[str]:
    counts = pieces(text).counts
    return {concept for concept in NARROW if counts[AT[concept]]}


@pytest.mark.parametrize(
    ("text", "concepts"),
    [
        ("escribe código", {"coding"}),
        ("una clase en C++", {"coding"}),
        ("这段代码", {"coding"}),
        ("このコードは", {"coding"}),
        ("이 코드", {"coding"}),
        ("Übersetze das", {"translation"}),
        ("¿cómo se dice hola en alemán?", {"translation", "language name"}),
        ("¿Cómo se diría hola?", set()),
        ("Décris la capture d'écran", {"picture"}),
        ("run the unit tests", {"coding"}),
        ("a pythonic snake", {"coding"}),
        ("codependent", set()),
        ("buenos días", set()),
    ],
)
def test_a_concept_is_found_where_it_is_named(text: str, concepts: set[str]) -> None:
    assert named(text) == concepts


def test_every_mention_counts() -> None:
    counts = [pieces(text).counts[AT["coding"]] for text in ("java", "java sql", "java sql php css")]
    assert counts == [1, 2, 4]


def test_a_word_may_name_more_than_one_concept() -> None:
    assert {CONCEPTS[place] for place in concepts_of_word("refactoriza")} == {"coding"}
    assert {"coding", "program"} <= {CONCEPTS[place] for place in concepts_of_word("json")}
