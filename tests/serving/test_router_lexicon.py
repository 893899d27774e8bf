# SPDX-License-Identifier: Apache-2.0
"""Concepts are found as whole words, as beginnings, as phrases, and inside scripts without spaces."""

from __future__ import annotations

import pytest

from vllm_axion.serving.ngram_classifier import tokens
from vllm_axion.serving.router_lexicon import CONCEPTS, concept_strengths


def named(text: str) -> set[str]:
    strengths = concept_strengths(tokens(text))
    return {concept for concept, strength in zip(CONCEPTS, strengths, strict=True) if strength}


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
        ("Décris la capture d'écran", {"picture"}),
        ("a pythonic snake", {"coding"}),
        ("codependent", set()),
        ("buenos días", set()),
    ],
)
def test_a_concept_is_found_where_it_is_named(text: str, concepts: set[str]) -> None:
    assert named(text) == concepts


def test_naming_it_again_is_stronger_but_bounded() -> None:
    coding = CONCEPTS.index("coding")
    strengths = [concept_strengths(tokens(text))[coding] for text in ("java", "java sql", "java sql php css")]
    assert strengths == [0.75, 1.0, 1.0]
