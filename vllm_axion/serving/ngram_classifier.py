# SPDX-License-Identifier: Apache-2.0
"""Text to domain probabilities: hashed n-grams and words, judged by similarity to labelled examples.

A message and an example are compared by the cosine of their idf-weighted features. The examples' votes are
weighted by kernel ridge regression on the examples' own similarities, f = k(x)·(K + λW⁻¹)⁻¹·Y, solved in
closed form at construction, whatever examples the user adds. The softmax temperature was fitted on its exact
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
from vllm_axion.serving.router_lexicon import CONCEPTS, concept_strengths, strip_accents

BUCKETS = 1 << 15
# Behind the hashed features stand measured ones: a foreign language, the look of code, and named concepts.
MEASURED_WEIGHTS = (0.3, 0.6, *(0.3 for _ in CONCEPTS))
MEASURED = len(MEASURED_WEIGHTS)
COLUMNS = BUCKETS + MEASURED
SAMPLE_CHARS = 2048  # of a long text, this much of the head and of the tail is read
WORD_WEIGHT, PAIR_WEIGHT, GRAM_WEIGHT = 2.0, 1.5, 0.4
RIDGE = 0.2
TEMPERATURE = 0.1  # as `best_temperature` finds it for the shipped examples
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
    folded = unicodedata.normalize("NFC", text.casefold())
    return [_DIGITS.sub("0", token)[:LONGEST_WORD] for token in _TOKEN.findall(folded)]


def _bucket(feature: str) -> int:
    return zlib.crc32(feature.encode("utf-8", "replace")) & (BUCKETS - 1)


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
    read = unicodedata.normalize("NFKC", sample(text))
    found = tokens(read)
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
    visible = [char for char in read if not char.isspace()]
    code = min(1.0, 5.0 * sum(char in _CODE_CHARS for char in visible) / max(20, len(visible)))
    concepts = concept_strengths(found)
    return Features(
        tuple(words),
        np.concatenate((present, np.arange(BUCKETS, COLUMNS))),
        # Square root: a word said nine times counts three times, not nine.
        np.concatenate((np.sqrt(summed[present]), (language.strength, code, *concepts))),
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
    code_shape: float  # 0..1, how much it looks like pasted code
    concepts: frozenset[str]  # those of `CONCEPTS` it names


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
        votes = np.linalg.solve(self._system(), self._truth()).astype(np.float64)
        weights = np.zeros((COLUMNS, len(self.domains)))
        for domain in range(len(self.domains)):
            weights[:, domain] = np.bincount(column_of, value_of * votes[row_of, domain], minlength=COLUMNS)
        self._weights: Floats = weights

    def _weigh(self, features: Features) -> Floats:
        """Unit length over the hashed columns; the measured ones are added with fixed weight."""
        values = features.weights * self._idf[features.columns]
        values[:-MEASURED] /= np.linalg.norm(values[:-MEASURED]) or 1.0
        values[-MEASURED:] = features.weights[-MEASURED:] * MEASURED_WEIGHTS
        return values

    def _truth(self) -> NDArray[np.float32]:
        """Targets [rows, domains]: 1 for the label, then centred, so that scores of a text sum to 0."""
        domains = len(self.domains)
        return (np.eye(domains)[self.labels] - 1.0 / domains).astype(np.float32)

    def _system(self) -> NDArray[np.float32]:
        """K + λW⁻¹ [rows, rows]: the examples' similarities, and the ridge."""
        rows = len(self.texts)
        column_of = np.repeat(np.arange(COLUMNS), np.diff(self._starts))
        order = np.argsort(self._rows, kind="stable")
        columns, values = column_of[order], self._values[order]
        ends = np.searchsorted(self._rows[order], np.arange(rows + 1))
        system = np.empty((rows, rows), np.float32)
        for row, (start, end) in enumerate(pairwise(ends.tolist())):
            system[row] = self._similarities(columns[start:end], values[start:end])
        # Few examples must not mean few votes: domains weigh the same in total, within bounds.
        balance = np.clip(rows / len(self.domains) / np.bincount(self.labels), 0.25, 8.0)[self.labels]
        system[np.diag_indices(rows)] += RIDGE / balance
        return system

    def leave_one_out(self) -> Floats:
        """Scores [rows, domains] that each example would get without itself. Slow: for development."""
        inverse = np.linalg.inv(self._system()).astype(np.float64)
        truth = self._truth().astype(np.float64)
        return np.asarray(truth - (inverse @ truth) / np.diag(inverse)[:, None])

    def _similarities(self, columns: Ids, values: Floats) -> Floats:
        """Inner products with every example [rows], through the postings of the given columns only."""
        starts = self._starts[columns]
        lengths = self._starts[columns + 1] - starts
        before = np.cumsum(lengths) - lengths
        postings = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
        products = self._values[postings] * np.repeat(values, lengths)
        summed = np.bincount(self._rows[postings], products, minlength=len(self.texts))
        return summed.astype(np.float64, copy=False)

    def judge(self, text: str) -> Judgement | None:
        """Scores of a text; None when it has no letter to judge by."""
        features = extract(text)
        if not features.columns.size:
            return None
        values = self._weigh(features)
        # Not a BLAS call: its threads would wait for cores that engines hold.
        scores = (values[:, None] * self._weights[features.columns]).sum(axis=0)
        _, code_shape, *strengths = features.weights[-MEASURED:].tolist()
        named = frozenset(name for name, strength in zip(CONCEPTS, strengths, strict=True) if strength)
        language = features.language
        return Judgement(scores, features.columns, values, features.words, language, code_shape, named)

    def probabilities(self, scores: Floats) -> Floats:
        """Calibrated probabilities (sum 1) of scores as `judge` gives them."""
        return softmax(scores / TEMPERATURE)

    def nearest(self, judgement: Judgement, domain: str) -> str | None:
        """The example of `domain` most similar to the judged text; None when none shares a feature."""
        if domain not in self.domains:
            return None
        similarity = self._similarities(judgement.columns, judgement.weights)
        similarity[self.labels != self.domains.index(domain)] = -1.0
        best = int(similarity.argmax())
        return self.texts[best] if similarity[best] > 0.0 else None

    def telling_words(self, judgement: Judgement, domain: str, most: int = 3) -> tuple[str, ...]:
        """The words of the text that speak most for `domain`, strongest first."""
        if domain not in self.domains:
            return ()
        column = self._weights[:, self.domains.index(domain)]
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


def best_temperature(scores: Floats, labels: Ids) -> float:
    """The softmax temperature with the least log loss of `labels` under `scores` [rows, domains]."""

    def loss(temperature: float) -> float:
        chance = softmax(scores / temperature)[np.arange(labels.size), labels]
        return float(-np.log(np.maximum(chance, 1e-12)).mean())

    return float(min(np.geomspace(0.02, 1.0, 60), key=loss))
