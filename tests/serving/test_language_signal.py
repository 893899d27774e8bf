# SPDX-License-Identifier: Apache-2.0
"""Spanish and English are at home; other languages are noticed."""

from __future__ import annotations

import pytest

from vllm_axion.serving.language_signal import foreign_language, script_of
from vllm_axion.serving.ngram_features import tokens


@pytest.mark.parametrize(
    "text",
    [
        "¿Qué significa soñar con agua?",
        "Let's play twenty questions",
        "La casa de mi abuela está en el pueblo",
        "I was in the war museum with a man",
        "npm install me da error",
        "Explain the letter α in physics",
        "hola",
        "The façade of the house is old",
        "¡Qué vergüenza, señor Muñoz!",
        "",
    ],
)
def test_spanish_and_english_give_no_signal(text: str) -> None:
    assert foreign_language(tokens(text)).strength == 0.0


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Où est la gare et comment y aller ?", "French"),
        ("Ich weiß nicht, was das bedeutet", "German"),
        ("Você não sabe onde fica a praia", "Portuguese"),
        ("Dove sono gli amici della mia sorella", "Italian"),
        ("Jag vet inte vad det är", "Swedish"),
        ("Nie wiem, co to jest", "Polish"),
        ("Bu ne demek ve nasıl yapılır", "Turkish"),
        ("Jutro idę do lekarza", "Polish"),
        ("Mġarr qiegħda ħdejn Għajnsielem", "another language"),
        ("Это очень интересно", "Cyrillic"),
        ("これは何ですか", "Kana"),
        ("这是什么东西", "Han"),
        ("이것은 무엇입니까", "Hangul"),
        ("ما هذا الشيء", "Arabic"),
        ("यह क्या है", "Devanagari"),
    ],
)
def test_other_languages_are_named(text: str, name: str) -> None:
    signal = foreign_language(tokens(text))
    assert signal.name == name
    assert 0.5 <= signal.strength <= 1.0


def test_a_foreign_word_in_a_spanish_sentence_is_no_foreign_message() -> None:
    assert (
        foreign_language(
            tokens("¿Qué significa la palabra привет que me dijo mi amiga ayer por la tarde?")
        ).strength
        == 0.0
    )


def test_scripts_are_told_by_code_point() -> None:
    assert [script_of(char) for char in "añяあ漢한ع🙂"] == [
        "",
        "",
        "Cyrillic",
        "Kana",
        "Han",
        "Hangul",
        "Arabic",
        "",
    ]
