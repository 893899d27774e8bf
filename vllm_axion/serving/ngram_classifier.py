# SPDX-License-Identifier: Apache-2.0
"""The trained content classifier: hashed n-grams judged linearly, then weighed together with counted signals.

First stage: multinomial logistic regression over the distinct n-grams of a text, scaled to unit length.
Second stage: a small network over the first stage's logits and the signals (share of Spanish and English
function words, how far the letters look like either language, the look of code, concepts named). It was
fitted on first stages that had not seen the text's topic, or its language, so it knows how far to believe
them.

All sums are of whole numbers: a text fed in pieces gives bit for bit what it gives whole.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vllm_axion.serving.language_signal import LanguageSignal, foreign_language
from vllm_axion.serving.ngram_features import (
    AT,
    COLUMNS,
    CONTEXT,
    COUNTS,
    GRAM_BUCKETS,
    HEAD_CHARS,
    SHAPES,
    START,
    TAIL_CHARS,
    Ints,
    Pieces,
    pieces,
    settled,
    windows,
)
from vllm_axion.serving.router_lexicon import CONCEPTS
from vllm_axion.serving.router_model import RouterModel, shipped_model

Floats = NDArray[np.float64]

_CODE_SHAPES = [AT[name] for name in SHAPES if name not in ("newline", "question", "quote")]
_SHAPE_PLACES = [AT[name] for name in SHAPES]
_CONCEPT_PLACES = [AT[name] for name in CONCEPTS]
_NONE = np.empty(0, np.int64)


@dataclass
class Sums:
    """What has been read so far, as sums."""

    scores: Ints  # [2, domains + 1]: of distinct character and word n-grams; last the square of their length
    counts: Ints  # in the order of COUNTS
    language: Ints  # [5]: log chances of 3-grams in Spanish, in English, elsewhere, at home; how many

    def plus(self, other: Sums) -> Sums:
        return Sums(self.scores + other.scores, self.counts + other.counts, self.language + other.language)


def nothing(domains: int) -> Sums:
    return Sums(np.zeros((2, domains + 1), np.int64), np.zeros(len(COUNTS), np.int64), np.zeros(5, np.int64))


def language_sums(read: Pieces, table: NDArray[np.int16]) -> Ints:
    """Log chances (in the table's unit) of the words' 3-grams in each language, word by word the better one
    of Spanish and English, and the number of 3-grams."""
    sums = np.zeros(5, np.int64)
    if not read.triples.size:
        return sums
    found = table[read.triples].astype(np.int64)
    sums[:3] = found.sum(axis=0)
    words = read.triple_word
    begins = np.concatenate(([0], np.flatnonzero(words[1:] != words[:-1]) + 1))
    sums[3] = np.add.reduceat(found[:, :2], begins, axis=0).max(axis=1).sum()
    sums[4] = read.triples.size
    return sums


def signals(sums: Sums, unit: float) -> Floats:
    """The second stage's view of counts and languages, each about -3..3. `unit`: nats in one of the
    table's."""
    counts = sums.counts.astype(np.float64)
    words = max(counts[AT["words"]], 1.0)
    letters = max(counts[AT["letters"]], 1.0)
    other = counts[AT["other script"]]
    spanish, english = counts[AT["spanish"]] / words, counts[AT["english"]] / words
    triples = max(float(sums.language[4]), 1.0)
    in_spanish, in_english, elsewhere, at_home = (sums.language[:4] * (unit / triples)).tolist()
    some = min(1.0, triples / 12.0)
    code = counts[_CODE_SHAPES].sum()
    return np.concatenate(
        (
            (
                2.0 * spanish,
                2.0 * english,
                2.0 * max(spanish, english),
                2.0 * min(1.0, (counts[AT["spanish"]] + counts[AT["english"]]) / words),
                # The longer a text without any function word of either language, the surer it is another's.
                np.exp(-words * max(spanish, english) / 2.0) * min(1.0, words / 5.0),
                some * (max(in_spanish, in_english) - elsewhere),
                some * (at_home - elsewhere),
                some * max(in_spanish, in_english),
                some * at_home,
                2.0 * other / (other + (letters - other) * 0.5),
                np.log1p(other),
                min(3.0, 20.0 * counts[AT["strange letters"]] / letters),
                np.log(words) - 1.5,
                np.log1p(counts[AT["visible"]]) - 3.5,
                np.log1p(code) / 2.0,
                min(3.0, 20.0 * code / (counts[AT["visible"]] + 10.0)),
            ),
            np.log1p(counts[_SHAPE_PLACES]) / 1.5,
            np.minimum(counts[_CONCEPT_PLACES], 3.0),
            np.minimum(counts[_CONCEPT_PLACES] / (words / 6.0 + 0.5), 2.0),
        )
    )


@dataclass(frozen=True)
class Judgement:
    """What the classifier thinks of a text, and what that rests on."""

    chances: Floats  # calibrated, in the order of `NgramClassifier.domains`, sum 1
    logits: Floats  # their logarithms, but for a constant
    sums: Sums
    read: tuple[Pieces, ...] = field(repr=False)

    @property
    def words(self) -> int:
        """Words in the stretch that was read."""
        return int(self.sums.counts[AT["words"]])

    @property
    def concepts(self) -> frozenset[str]:
        """Those of `CONCEPTS` that are named."""
        return frozenset(c for c in CONCEPTS if self.sums.counts[AT[c]])

    def language(self) -> LanguageSignal:
        """The language, where it is neither Spanish nor English and can be named."""
        return foreign_language([token for part in self.read for token in part.tokens if token[0].isalpha()])


class NgramClassifier:
    """Immutable after construction, hence safe to share between threads."""

    def __init__(self, model: RouterModel | None = None) -> None:
        """Without a model: the one that ships with the package."""
        self.model = model or shipped_model()
        self.domains: tuple[str, ...] = self.model.domains

    def judge(self, text: str) -> Judgement | None:
        """Calibrated chances of a text; None when it has no letter to judge by."""
        read: list[Pieces] = []
        sums = nothing(len(self.domains))
        for part in windows(text):
            if part:
                read.append(pieces(part))
                sums = sums.plus(self.counted(read[-1]))
        columns = read[0].columns if len(read) == 1 else np.concatenate([r.columns for r in read] or [_NONE])
        sums.scores += self.scored(distinct(columns))
        return self.judged(sums, tuple(read))

    def accumulator(self) -> TextAccumulator:
        """For text that is still coming: `feed` it, `judge` it at any time."""
        return TextAccumulator(self)

    def counted(self, read: Pieces) -> Sums:
        """Sums of everything but the n-grams, which count once a text."""
        sums = nothing(len(self.domains))
        sums.counts += read.counts
        sums.language += language_sums(read, self.model.triples)
        return sums

    def scored(self, columns: Ints) -> Ints:
        """Sums of scores of n-grams, in ascending order."""
        found = self.model.weights[columns]
        words = int(np.searchsorted(columns, GRAM_BUCKETS))
        # Not a BLAS call: its threads would wait for cores that engines hold.
        return np.stack(
            [found[:words].sum(axis=0, dtype=np.int64), found[words:].sum(axis=0, dtype=np.int64)]
        )

    def first_stage(self, scores: Ints) -> Floats:
        """Logits of all n-grams, then of those of words alone."""
        sums = np.stack([scores.sum(axis=0), scores[1]]).astype(np.float64)
        length = np.sqrt(np.maximum(sums[:, -1:] * self.model.square_unit, 1e-9))
        logits = sums[:, :-1] * (self.model.weight_unit / length) + self.model.bias
        return np.asarray(logits).ravel()

    def judged(self, sums: Sums, read: tuple[Pieces, ...]) -> Judgement | None:
        """From sums to chances."""
        if not sums.counts[AT["letters"]]:
            return None
        seen = np.concatenate((self.first_stage(sums.scores), signals(sums, self.model.triple_unit)))
        logits = self.model.second_stage(seen)
        return Judgement(softmax(logits), logits, sums, read)

    def telling_words(self, judgement: Judgement, domain: str, most: int = 3) -> tuple[str, ...]:
        """The words of the text whose n-grams speak most for `domain`, strongest first."""
        if domain not in self.domains:
            return ()
        spoken: dict[str, float] = {}
        here = self.domains.index(domain)
        for part in judgement.read:
            said = self.model.weights[part.columns][:, : len(self.domains)].astype(np.int64)
            lead = said[:, here] * len(self.domains) - said.sum(axis=1)
            by_token = np.bincount(part.token_of, lead, minlength=len(part.tokens))
            for token, weight in zip(part.tokens, by_token.tolist(), strict=True):
                if weight > 0.0 and token[0].isalpha():
                    spoken[token] = max(weight, spoken.get(token, 0.0))
        return tuple(sorted(spoken, key=lambda token: -spoken[token])[:most])


class TextAccumulator:
    """A text that is still coming. Each `feed` costs what the new characters cost; so does `judge`, but for
    the unfinished word and, of a text longer than HEAD_CHARS, its tail of at most TAIL_CHARS. Not
    thread-safe.

    The judgement equals `NgramClassifier.judge` of the whole text, bit for bit."""

    def __init__(self, classifier: NgramClassifier) -> None:
        self._classifier = classifier
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._room = HEAD_CHARS  # characters the head still takes
        self._pending = ""  # of the head, what later text may still change
        self._tail = ""
        self._before: tuple[str, ...] = START
        self._seen = np.zeros(COLUMNS // 8, np.uint8)  # one bit for each n-gram that has counted
        self._sums = nothing(len(self._classifier.domains))
        self._read: list[Pieces] = []

    def feed(self, delta: str) -> None:
        """Append text."""
        head, behind = delta[: self._room], delta[self._room :]
        self._room -= len(head)
        self._pending += head
        ready = settled(self._pending)
        if ready:
            done = pieces(self._pending[:ready], self._before)
            self._pending = self._pending[ready:]
            self._before = (*self._before, *done.tokens)[-CONTEXT:]
            new = self._unseen(distinct(done.columns))
            np.bitwise_or.at(self._seen, new >> 3, (1 << (new & 7)).astype(np.uint8))
            self._sums = self._sums.plus(self._classifier.counted(done))
            self._sums.scores += self._classifier.scored(new)
            self._read.append(done)
        if behind:
            self._tail = (self._tail + behind)[-TAIL_CHARS:]

    def copy(self) -> TextAccumulator:
        """Another one in the same state, to come back to."""
        other = copy.copy(self)
        other._seen = self._seen.copy()
        other._read = list(self._read)
        return other

    def judge(self) -> Judgement | None:
        """Calibrated chances of what came so far; None when it has no letter to judge by."""
        sums, read = self._sums, list(self._read)
        for text, before in ((self._pending, self._before), (self._tail, START)):
            if text:
                read.append(pieces(text, before))
                sums = sums.plus(self._classifier.counted(read[-1]))
        open_columns = [part.columns for part in read[len(self._read) :]]
        if open_columns:
            new = self._unseen(distinct(np.concatenate(open_columns)))
            sums = sums.plus(nothing(len(self._classifier.domains)))
            sums.scores += self._classifier.scored(new)
        return self._classifier.judged(sums, tuple(read))

    def _unseen(self, columns: Ints) -> Ints:
        fresh: Ints = columns[(self._seen[columns >> 3] >> (columns & 7).astype(np.uint8)) & 1 == 0]
        return fresh


def distinct(columns: Ints) -> Ints:
    """Each column once, in ascending order."""
    if not columns.size:
        return columns
    ordered = np.sort(columns)
    first = np.empty(ordered.size, np.bool_)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def softmax(values: Floats) -> Floats:
    """Along the last axis."""
    shifted = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
