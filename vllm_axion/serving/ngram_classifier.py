# SPDX-License-Identifier: Apache-2.0
"""Text to domain probabilities: hashed n-grams and words, judged by similarity to labelled examples.

A message and an example are compared by the cosine of their idf-weighted features. The examples' votes are
weighted by kernel ridge regression on the examples' own similarities, f = k(x)·(K + λW⁻¹)⁻¹·Y, solved in
closed form at construction, whatever examples the user adds. The softmax temperature is fitted on its exact
leave-one-out values, y_i - α_i / (K + λW⁻¹)⁻¹_ii: on answers given without the example itself.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vllm_axion.serving.language_signal import LanguageSignal, foreign_language

BUCKETS = 1 << 15
FOREIGN, CODE_SHAPE = BUCKETS, BUCKETS + 1  # two features that are measured, not hashed
COLUMNS = BUCKETS + 2
SAMPLE_CHARS = 2048  # of a long text, this much of the head and of the tail is read
WORD_WEIGHT, PAIR_WEIGHT, GRAM_WEIGHT = 2.0, 1.0, 0.6
FOREIGN_WEIGHT, CODE_WEIGHT = 0.7, 0.5
RIDGE = 0.3
LONGEST_WORD = 40

_TOKEN = re.compile(r"\w+|[^\w\s]+")
_DIGITS = re.compile(r"\d+")
_CODE_CHARS = frozenset("{}()[];=<>_/\\|&$#*+`")

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]


def sample(text: str) -> str:
    """Head and tail of a long text: instructions stand at either end, and the cost stays bounded."""
    if len(text) <= 2 * SAMPLE_CHARS:
        return text
    return f"{text[:SAMPLE_CHARS]}\n{text[-SAMPLE_CHARS:]}"


def tokens(text: str) -> list[str]:
    """Case-folded words (accents kept, digits as one 0) and runs of symbols, in order."""
    folded = unicodedata.normalize("NFKC", sample(text)).casefold()
    folded = unicodedata.normalize("NFC", folded)
    return [_DIGITS.sub("0", token)[:LONGEST_WORD] for token in _TOKEN.findall(folded)]


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", "replace")) & (BUCKETS - 1)


def strip_accents(word: str) -> str:
    """`mañana` -> `manana`: many people type without them."""
    if word.isascii():
        return word
    decomposed = unicodedata.normalize("NFD", word)
    return "".join(char for char in decomposed if not unicodedata.combining(char))


@lru_cache(maxsize=1 << 14)
def _word_features(word: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Buckets of the word itself and of its 2..5-grams, with and without accents."""
    plain = strip_accents(word) or word
    forms = (word,) if plain == word else (word, plain)
    whole = tuple(_bucket("w" + form) for form in forms)
    if not (word[0].isalnum() or word[0] == "_"):
        return whole, ()
    grams: list[int] = []
    for form in forms:
        padded = f" {form} "
        for n in range(2, 6):
            grams.extend(_bucket(padded[i : i + n]) for i in range(len(padded) - n + 1))
    return whole, tuple(grams)


@lru_cache(maxsize=1 << 14)
def _pair_feature(left: str, right: str) -> int:
    return _bucket(f"p{strip_accents(left)} {strip_accents(right)}")


@dataclass(frozen=True)
class Features:
    """One text: its tokens, the non-zero columns with their raw weights, and the language signal."""

    words: tuple[str, ...]
    columns: Ids
    weights: Floats
    language: LanguageSignal


def extract(text: str) -> Features:
    """Raw (not yet idf-weighted) features. Text without any letter has no columns."""
    found = tokens(text)
    words = [word for word in found if any(char.isalnum() for char in word)]
    if not any(char.isalpha() for word in words for char in word):
        return Features((), np.empty(0, np.int64), np.empty(0), LanguageSignal())
    columns: list[int] = []
    sizes = [0, 0, 0]
    per_word = [_word_features(word) for word in found]
    for whole, _ in per_word:
        columns.extend(whole)
    sizes[0] = len(columns)
    columns.extend(_pair_feature(a, b) for a, b in pairwise(found))
    sizes[1] = len(columns) - sizes[0]
    for _, grams in per_word:
        columns.extend(grams)
    sizes[2] = len(columns) - sizes[0] - sizes[1]
    raw = np.repeat((WORD_WEIGHT, PAIR_WEIGHT, GRAM_WEIGHT), sizes)
    summed = np.bincount(np.asarray(columns, np.int64), weights=raw, minlength=BUCKETS)
    present = np.flatnonzero(summed)
    language = foreign_language(words)
    visible = [char for char in sample(text) if not char.isspace()]
    code = min(1.0, 5.0 * sum(char in _CODE_CHARS for char in visible) / max(20, len(visible)))
    return Features(
        tuple(words),
        np.concatenate((present, (FOREIGN, CODE_SHAPE))),
        # Square root: a word said nine times counts three times, not nine.
        np.concatenate((np.sqrt(summed[present]), (language.strength, code))),
        language,
    )


@dataclass(frozen=True)
class Judgement:
    """Scores (about 0..1, one a domain, in `NgramClassifier.domains` order) and what they rest on."""

    scores: Floats
    columns: Ids
    weights: Floats
    words: tuple[str, ...]
    language: LanguageSignal


class NgramClassifier:
    """Immutable after construction, hence safe to share between threads."""

    def __init__(self, examples: Mapping[str, Sequence[str]]) -> None:
        """`examples`: domain -> texts. Domains without a usable text are never answered.

        Raises ValueError when fewer than two domains have a usable text."""
        labelled = [(domain, text, extract(text)) for domain, texts in examples.items() for text in texts]
        labelled = [row for row in labelled if row[2].columns.size]
        self.domains: tuple[str, ...] = tuple(dict.fromkeys(domain for domain, _, _ in labelled))
        if len(self.domains) < 2:
            raise ValueError("the router needs examples of at least two domains")
        self.texts: tuple[str, ...] = tuple(text for _, text, _ in labelled)
        self.labels: Ids = np.array([self.domains.index(domain) for domain, _, _ in labelled], np.int64)
        rows = len(labelled)
        row_of = np.repeat(np.arange(rows), [features.columns.size for _, _, features in labelled])
        column_of = np.concatenate([features.columns for _, _, features in labelled])
        seen = np.bincount(column_of, minlength=COLUMNS)
        self._idf: Floats = np.log((1.0 + rows) / (1.0 + seen)) + 1.0
        value_of = np.concatenate([self._weigh(features) for _, _, features in labelled])
        order = np.argsort(column_of, kind="stable")
        self._rows: Ids = row_of[order]
        self._values: Floats = value_of[order]
        self._starts: Ids = np.concatenate(([0], np.cumsum(seen)))
        votes, held_out = self._fit(row_of, column_of, value_of, seen)
        weights = np.zeros((COLUMNS, len(self.domains)))
        for domain in range(len(self.domains)):
            weights[:, domain] = np.bincount(column_of, value_of * votes[row_of, domain], minlength=COLUMNS)
        self._weights: Floats = weights
        self.held_out_scores: Floats = held_out
        self.temperature: float = self._fit_temperature()

    def _weigh(self, features: Features) -> Floats:
        """Unit length over the hashed columns; the two measured ones are added with fixed weight."""
        values = features.weights * self._idf[features.columns]
        values[:-2] /= np.linalg.norm(values[:-2]) or 1.0
        values[-2:] = features.weights[-2:] * (FOREIGN_WEIGHT, CODE_WEIGHT)
        return values

    def _fit(self, row_of: Ids, column_of: Ids, value_of: Floats, seen: Ids) -> tuple[Floats, Floats]:
        """Votes of each example [rows, domains] and the leave-one-out scores [rows, domains]."""
        rows, domains = len(self.texts), len(self.domains)
        # A column that one example has alone adds to the diagonal only: most are such, and leave the matrix.
        shared = np.flatnonzero(seen >= 2)
        place = np.full(COLUMNS, -1)
        place[shared] = np.arange(shared.size)
        keep = place[column_of] >= 0
        dense = np.zeros((rows, shared.size), np.float32)
        dense[row_of[keep], place[column_of[keep]]] = value_of[keep]
        kernel = (dense @ dense.T).astype(np.float64)
        np.fill_diagonal(kernel, np.bincount(row_of, value_of**2, minlength=rows))
        # Few examples must not mean few votes: domains weigh the same in total (bounded, for tiny ones).
        count = np.bincount(self.labels, minlength=domains)
        balance = np.clip(rows / domains / count, 0.25, 8.0)[self.labels]
        inverse = np.linalg.inv(kernel + RIDGE * np.diag(1.0 / balance))
        truth = np.eye(domains)[self.labels] - 1.0 / domains
        votes = inverse @ truth
        held_out = truth - votes / np.diag(inverse)[:, None]
        return votes, held_out

    def _fit_temperature(self) -> float:
        """The temperature with the least log loss on leave-one-out scores."""
        candidates = np.geomspace(0.02, 1.0, 40)

        def loss(temperature: float) -> float:
            chance = softmax(self.held_out_scores / temperature)[np.arange(self.labels.size), self.labels]
            return float(-np.log(np.maximum(chance, 1e-12)).mean())

        return float(min(candidates, key=loss))

    def judge(self, text: str) -> Judgement | None:
        """Scores of a text; None when it has no letter to judge by."""
        features = extract(text)
        if not features.columns.size:
            return None
        values = self._weigh(features)
        return Judgement(
            values @ self._weights[features.columns],
            features.columns,
            values,
            features.words,
            features.language,
        )

    def probabilities(self, scores: Floats) -> Floats:
        """Calibrated probabilities (sum 1) of scores as `judge` gives them."""
        return softmax(scores / self.temperature)

    def nearest(self, judgement: Judgement, domain: str) -> str | None:
        """The example of `domain` most similar to the judged text; None when none shares a feature."""
        starts = self._starts[judgement.columns]
        lengths = self._starts[judgement.columns + 1] - starts
        total = int(lengths.sum())
        if not total or domain not in self.domains:
            return None
        offsets = np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths) + np.arange(
            total
        )
        similarity = np.bincount(
            self._rows[offsets],
            self._values[offsets] * np.repeat(judgement.weights, lengths),
            minlength=len(self.texts),
        )
        similarity[self.labels != self.domains.index(domain)] = -1.0
        best = int(similarity.argmax())
        return self.texts[best] if similarity[best] > 0.0 else None

    def telling_words(self, judgement: Judgement, domain: str, most: int = 3) -> tuple[str, ...]:
        """The words of the text that speak most for `domain`, strongest first."""
        if domain not in self.domains:
            return ()
        column = self._weights[:, self.domains.index(domain)] - self._weights.mean(axis=1)
        spoken: dict[str, float] = {}
        for word in judgement.words[:200]:
            if word not in spoken:
                whole, grams = _word_features(word)
                ids = [*whole, *grams]
                factors = [WORD_WEIGHT] * len(whole) + [GRAM_WEIGHT] * len(grams)
                spoken[word] = float((column[ids] * self._idf[ids] * np.sqrt(factors)).sum())
        best = sorted(spoken, key=lambda word: -spoken[word])[:most]
        return tuple(word for word in best if spoken[word] > 0.0)


def softmax(values: Floats) -> Floats:
    """Along the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
