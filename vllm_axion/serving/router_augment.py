# SPDX-License-Identifier: Apache-2.0
"""Variants of examples, as people type: without accents, with typos, half-typed, polite, with code."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_axion.serving.language_signal import ENGLISH_WORDS, SPANISH_WORDS
from vllm_axion.serving.router_lexicon import strip_accents

_OPENINGS = {
    "es": (
        "hola,", "Hola, buenas.", "oye,", "por favor,", "perdona,", "una pregunta:", "Necesito ayuda:",
        "a ver,", "¿Me puedes ayudar?", "Tengo una duda:", "me gustaría saber", "quiero que me digas",
        "dime", "Buenas tardes,", "Disculpa,", "bueno,", "oye una cosa,", "Llevo rato con esto.",
        "Es para mañana.", "necesito urgentemente", "Estimado asistente,", "¿podrías decirme",
        "¿me puedes decir", "porfa", "Estoy liado con una cosa.",
    ),
    "en": (
        "hi,", "Hello!", "hey,", "please", "Sorry to bother you,", "quick question:", "I need help:", "so,",
        "ok so", "Can you help me?", "I have a doubt:", "I'd like to know", "tell me", "Good morning,",
        "could you please", "Excuse me,", "well,", "one more thing:", "I've been at this for hours.",
        "It's for tomorrow.", "urgent:", "Dear assistant,", "can you tell me", "would you mind telling me",
        "I was wondering",
    ),
}  # fmt: skip
_CLOSINGS = {
    "es": (
        "por favor", "gracias", "muchas gracias", "¿vale?", "porfa", "Gracias de antemano.", "es urgente",
        "si puedes", "¡gracias!", "te lo agradezco", "lo antes posible", "que no me entero", "ayuda", "🙏",
    ),
    "en": (
        "please", "thanks", "thank you!", "ok?", "pls", "Thanks in advance.", "it's urgent", "if you can",
        "asap", "I'd appreciate it", "I'm lost here", "help", "🙏", "thx",
    ),
}  # fmt: skip
_NEAR = {
    near: row[max(0, at - 1) : at] + row[at + 1 : at + 2]
    for row in ("qwertyuiop", "asdfghjklñ", "zxcvbnm")
    for at, near in enumerate(row)
}


@dataclass(frozen=True)
class Example:
    """One labelled text; `language` is an ISO 639 code, `mul` (mixed) or `zxx` (code and the like)."""

    domain: str
    language: str
    text: str


def _plain(text: str, rng: random.Random) -> str:
    plain = strip_accents(text)
    if rng.random() < 0.7:
        plain = plain.lower()
    for mark in "¿¡":
        plain = plain.replace(mark, "")
    return plain.rstrip("?.! ") if rng.random() < 0.6 else plain


def _typos(text: str, rng: random.Random) -> str:
    letters = list(text)
    for _ in range(max(1, len(text) // 25)):
        places = [at for at in range(1, len(letters) - 1) if letters[at].isalpha()]
        if not places:
            break
        at = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        elif kind == 1:
            del letters[at]
        elif kind == 2:
            letters.insert(at, letters[at])
        else:
            letters[at] = rng.choice(_NEAR.get(letters[at].lower()) or letters[at])
    return "".join(letters)


def _beginning(text: str, rng: random.Random) -> str:
    """Half-typed: at least half of it, cut anywhere."""
    return text[: max(4, int(len(text) * rng.uniform(0.5, 0.95)))]


def _polite(text: str, rng: random.Random, language: str) -> str:
    opening, closing = _OPENINGS.get(language), _CLOSINGS.get(language)
    if not opening or not closing:
        return text.lower()
    kind = rng.randrange(3)
    if kind != 1:
        text = f"{rng.choice(opening)} {text}"
    return f"{text.rstrip('.')} {rng.choice(closing)}" if kind else text


def _fewer_words(text: str, rng: random.Random) -> str:
    """Some of the words that carry the topic are left out: the others must do."""
    words = text.split(" ")
    kept = [
        word
        for word in words
        if word.lower() in SPANISH_WORDS or word.lower() in ENGLISH_WORDS or rng.random() > 0.3
    ]
    return " ".join(kept) if len(kept) > 1 else text


def _loud(text: str, rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return text.upper()
    if kind == 1:
        return text + rng.choice(("?", "??", "...", "!!", " :)", " 😅", " jaja", "\n"))
    return text[:1].lower() + text[1:] if kind == 2 else text.lower()


def variants(
    example: Example, count: int, rng: random.Random, same: Sequence[Example], code: Sequence[Example]
) -> list[Example]:
    """`count` variants of a text. `same`: examples of its domain and fold to join it with; `code`: bare
    code."""
    language = example.language
    if language == "zxx":
        cuts = [
            Example(example.domain, language, _beginning(example.text, rng)),
            Example(example.domain, language, f"```\n{example.text}\n```"),
            Example(example.domain, language, example.text.replace("\n", " ")),
        ]
        return rng.sample(cuts, min(count, len(cuts)))
    ways: list[Callable[[], str]] = [
        lambda: _plain(example.text, rng),
        lambda: _plain(_typos(example.text, rng), rng),
        lambda: _typos(example.text, rng),
        lambda: _beginning(example.text, rng),
        lambda: _beginning(_plain(example.text, rng), rng),
        lambda: _polite(example.text, rng, language),
        lambda: _polite(_plain(example.text, rng), rng, language),
        lambda: _fewer_words(example.text, rng),
        lambda: _loud(example.text, rng),
    ]
    if same:
        ways.append(lambda: f"{example.text}{rng.choice((' ', '. ', chr(10)))}{rng.choice(same).text}")
    if code and example.domain == "coding":
        ways.append(
            lambda: f"{example.text}{rng.choice((chr(10), ': ', chr(10) * 2))}{rng.choice(code).text}"
        )
    chosen = rng.sample(ways, min(count, len(ways)))
    return [Example(example.domain, language, way()) for way in chosen]


def gibberish(rng: random.Random) -> str:
    """Text in no language, about nothing."""
    kind = rng.randrange(4)
    if kind == 0:
        letters = "bcdfghjklmnpqrstvwxyz"
        words = ["".join(rng.choices(letters, k=rng.randint(2, 7))) for _ in range(rng.randint(1, 5))]
    elif kind == 1:
        row = rng.choice(("asdfghjkl", "qwertyuiop", "zxcvbnm", "jkl", "asdf"))
        words = ["".join(rng.choices(row, k=rng.randint(3, 9))) for _ in range(rng.randint(1, 3))]
    elif kind == 2:
        words = [rng.choice("abcdefghijklmnopqrstuvwxyz") * rng.randint(1, 8)]
    else:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        words = ["".join(rng.choices(letters, k=rng.randint(4, 24))) for _ in range(rng.randint(1, 2))]
    return " ".join([*words, rng.choice("abcxyz")] if kind == 3 else words)
