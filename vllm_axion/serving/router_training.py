# SPDX-License-Identifier: Apache-2.0
"""The mathematics of training the router: folds, both stages, calibration. Deterministic, numpy only."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm_axion.serving.language_signal import ENGLISH_WORDS, SPANISH_WORDS
from vllm_axion.serving.ngram_classifier import (
    Floats,
    Sums,
    distinct,
    language_sums,
    nothing,
    signals,
    softmax,
)
from vllm_axion.serving.ngram_features import (
    COLUMNS,
    GRAM_BUCKETS,
    TRIPLE_BUCKETS,
    Ints,
    Pieces,
    pieces,
    windows,
)
from vllm_axion.serving.router_augment import Example
from vllm_axion.serving.router_lexicon import strip_accents

FOLDS = 5
CLUSTERS = 60
HOME = ("es", "en", "mul", "zxx")  # languages that are parted by topic, not by language
WORD_WEIGHT = 1.5  # of word n-grams against character n-grams
STEEPNESS = 8.0  # logits are this times the weights' mean over a text's n-grams of unit length
TRIPLE_UNIT = 1.0 / 1024.0

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rows:
    """Texts as numbers. `label` is -1 for texts that belong nowhere."""

    columns: NDArray[np.int32]  # distinct ones, row by row
    starts: Ints  # [rows + 1]: where each row's columns begin
    sums: list[Sums]  # without scores and languages
    triples: list[tuple[Pieces, ...]]
    labels: Ints
    weights: Floats
    source: Ints  # the example each comes from

    @property
    def originals(self) -> Flags:
        """Rows that are examples as written, not variants."""
        return np.asarray(self.weights == 1.0)


def rows_of(
    examples: Sequence[Example], labels: Sequence[int], weights: Sequence[float], source: Sequence[int]
) -> Rows:
    """Read the texts. Each must hold something to read."""
    columns, sums, triples = [], [], []
    none = np.empty(0, np.int64)
    for example in examples:
        parts = [pieces(part) for part in windows(example.text) if part]
        columns.append(distinct(np.concatenate([part.columns for part in parts])).astype(np.int32))
        total = nothing(0)
        for part in parts:
            total.counts += part.counts
        sums.append(total)
        triples.append(
            tuple(Pieces(none, none, part.triples, part.triple_word, part.counts, ()) for part in parts)
        )
    starts = np.concatenate(([0], np.cumsum([found.size for found in columns])))
    return Rows(
        np.concatenate(columns), starts, sums, triples, np.array(labels), np.array(weights), np.array(source)
    )


def topics(examples: Sequence[Example]) -> Ints:
    """Spherical k-means over the words that carry a topic; the number of the cluster of each text."""
    stems = [
        {
            word[:6]
            for word in re.findall(r"[^\W\d_]{4,}", strip_accents(example.text.casefold()))
            if word not in SPANISH_WORDS and word not in ENGLISH_WORDS
        }
        for example in examples
    ]
    seen: dict[str, int] = {}
    for of_text in stems:
        for stem in of_text:
            seen[stem] = seen.get(stem, 0) + 1
    known = sorted(stem for stem, count in seen.items() if 2 <= count <= 0.03 * len(examples))
    place = {stem: at for at, stem in enumerate(known)}
    x = np.zeros((len(examples), len(known)), np.float32)
    for row, of_text in enumerate(stems):
        for stem in of_text & place.keys():
            x[row, place[stem]] = np.log(len(examples) / seen[stem])
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    rng = np.random.default_rng(0)
    centres = x[rng.choice(len(x), CLUSTERS, replace=False)]
    for _ in range(12):
        nearest = (x @ centres.T).argmax(axis=1)
        for cluster in range(CLUSTERS):
            total = x[nearest == cluster].sum(axis=0)
            length = np.linalg.norm(total)
            centres[cluster] = total / length if length else x[rng.integers(len(x))]
    nearest = (x @ centres.T).argmax(axis=1)
    lone = np.flatnonzero(~x.any(axis=1))
    nearest[lone] = np.arange(lone.size) % CLUSTERS
    return np.asarray(nearest)


def folds_of(examples: Sequence[Example]) -> Ints:
    """The fold of each text: by topic in Spanish and English, by language elsewhere."""
    clusters = topics(examples)
    return np.array(
        [
            zlib.crc32(
                (f"topic {cluster}" if example.language in HOME else f"language {example.language}").encode()
            )
            % FOLDS
            for example, cluster in zip(examples, clusters.tolist(), strict=True)
        ]
    )


@dataclass(frozen=True)
class FirstStage:
    """Logits are `bias` and the sum of `weights` [columns, domains] of a text's n-grams over the square root
    of the sum of their `squares` [columns]."""

    weights: Floats
    squares: Floats
    bias: Floats

    def logits(self, rows: Rows, which: Ints) -> Floats:
        """As `NgramClassifier.first_stage`: of all n-grams, then of those of words alone."""
        out = np.empty((which.size, 2, self.bias.size))
        for at, row in enumerate(which.tolist()):
            columns = rows.columns[rows.starts[row] : rows.starts[row + 1]]
            for view, of_view in enumerate((columns, columns[columns >= GRAM_BUCKETS])):
                length = np.sqrt(np.maximum(self.squares[of_view].sum(), 1e-9))
                out[at, view] = self.weights[of_view].sum(axis=0) / length + self.bias
        return out.reshape(which.size, -1)


def column_values(rows: Rows, keep: Flags) -> Floats:
    """The weight of each column before training: rarer is heavier."""
    kept = keep & rows.originals
    seen = np.bincount(rows.columns[np.repeat(kept, np.diff(rows.starts))], minlength=COLUMNS)
    values: Floats = np.log((1.0 + kept.sum()) / (1.0 + seen)) + 1.0
    values[GRAM_BUCKETS:] *= WORD_WEIGHT
    return values


def train_first_stage(
    rows: Rows,
    keep: Flags,
    domains: int,
    *,
    epochs: int = 4,
    rate: float = 0.02,
    drop: float = 0.5,
    smoothing: float = 0.02,
    seed: int = 0,
) -> FirstStage:
    """Multinomial logistic regression by AdaGrad in batches, with some n-grams of each text left out at
    random (`drop`), so that others learn to do without them."""
    values = column_values(rows, keep)
    weights = np.zeros((COLUMNS, domains), np.float32)
    history = np.full((COLUMNS, domains), 1e-4, np.float32)
    bias = np.zeros(domains)
    rng = np.random.default_rng(seed)
    mine = np.flatnonzero(keep & (rows.labels >= 0))
    share = np.bincount(rows.labels[mine], rows.weights[mine], minlength=domains)
    balance = np.sqrt(share.sum() / domains / np.maximum(share, 1e-9))
    of_column = values[rows.columns].astype(np.float32)
    length = np.sqrt(np.add.reduceat(of_column * of_column, rows.starts[:-1]))
    for epoch in range(epochs):
        rng.shuffle(mine)
        step = rate * (1.0 - 0.85 * epoch / max(1, epochs - 1))
        for at in range(0, mine.size, 512):
            batch = mine[at : at + 512]
            lengths = rows.starts[batch + 1] - rows.starts[batch]
            begins = np.cumsum(lengths) - lengths
            flat = np.repeat(rows.starts[batch] - begins, lengths) + np.arange(int(lengths.sum()))
            columns = rows.columns[flat]
            x = of_column[flat] / np.repeat(length[batch], lengths)
            x *= (rng.random(x.size, np.float32) >= drop) * np.float32(1.0 / (1.0 - drop))
            logits = np.add.reduceat(weights[columns] * x[:, None], begins, axis=0) * STEEPNESS + bias
            error = softmax(logits.astype(np.float64)) - smoothing / domains
            labels = rows.labels[batch]
            error[np.arange(batch.size), labels] -= 1.0 - smoothing
            error *= (rows.weights[batch] * balance[labels])[:, None]
            bias -= step * error.mean(axis=0)
            spread = np.repeat(error.astype(np.float32), lengths, axis=0) * x[:, None]
            touched, where = np.unique(columns, return_inverse=True)
            slope = np.stack(
                [np.bincount(where, spread[:, d], minlength=touched.size) for d in range(domains)], axis=1
            ).astype(np.float32)
            history[touched] += slope * slope
            weights[touched] -= step * slope / np.sqrt(history[touched])
    return FirstStage(weights.astype(np.float64) * values[:, None] * STEEPNESS, values * values, bias)


def language_table(rows: Rows, examples: Sequence[Example], keep: Flags) -> NDArray[np.int16]:
    """Log chances of 3-grams in Spanish, English and everything else, in TRIPLE_UNIT."""
    counts = np.zeros((TRIPLE_BUCKETS, 3))
    for row in np.flatnonzero(keep & rows.originals & (rows.labels >= 0)).tolist():
        language = examples[rows.source[row]].language
        if language in ("zxx", "mul"):
            continue
        column = ("es", "en").index(language) if language in ("es", "en") else 2
        for part in rows.triples[row]:
            np.add.at(counts[:, column], part.triples, 1.0)
    smooth = 0.05
    chances = (counts + smooth) / (counts.sum(axis=0) + smooth * 20_000)
    table: NDArray[np.int16] = np.round(np.log(chances) / TRIPLE_UNIT).clip(-32_000, 32_000).astype(np.int16)
    return table


def second_stage_inputs(rows: Rows, which: Ints, logits: Floats, table: NDArray[np.int16]) -> Floats:
    """What the second stage sees [which, inputs], as `NgramClassifier.judged` puts it together."""
    seen = []
    for at, row in enumerate(which.tolist()):
        total = nothing(0)
        total.counts += rows.sums[row].counts
        for part in rows.triples[row]:
            total.language += language_sums(part, table)
        seen.append(np.concatenate((logits[at], signals(total, TRIPLE_UNIT))))
    return np.array(seen)


@dataclass(frozen=True)
class SecondStage:
    """One hidden layer of tanh."""

    into_hidden: Floats
    hidden_bias: Floats
    out_of_hidden: Floats
    out_bias: Floats

    def logits(self, placed: Floats) -> Floats:
        hidden = np.tanh(placed @ self.into_hidden + self.hidden_bias)
        return np.asarray(hidden @ self.out_of_hidden + self.out_bias)


def train_second_stage(
    placed: Floats,
    targets: Floats,
    weights: Floats,
    *,
    hidden: int = 24,
    epochs: int = 15,
    decay: float = 2e-4,
    noise: float = 0.15,
    seed: int = 0,
) -> SecondStage:
    """Adam on the log loss of `targets` [rows, domains], with a little noise on the inputs."""
    rng = np.random.default_rng(seed)
    inputs, domains = placed.shape[1], targets.shape[1]
    net = SecondStage(
        rng.normal(0.0, 1.0 / np.sqrt(inputs), (inputs, hidden)),
        np.zeros(hidden),
        rng.normal(0.0, 0.3 / np.sqrt(hidden), (hidden, domains)),
        np.zeros(domains),
    )
    parts = (net.into_hidden, net.hidden_bias, net.out_of_hidden, net.out_bias)
    means = [np.zeros_like(part) for part in parts]
    squares = [np.zeros_like(part) for part in parts]
    steps = 0
    for epoch in range(epochs):
        order = rng.permutation(len(placed))
        rate = 0.004 * (1.0 - 0.95 * epoch / epochs)
        for at in range(0, len(order), 256):
            batch = order[at : at + 256]
            x = placed[batch] + rng.normal(0.0, noise, (batch.size, inputs))
            inner = np.tanh(x @ net.into_hidden + net.hidden_bias)
            error = softmax(inner @ net.out_of_hidden + net.out_bias) - targets[batch]
            error *= (weights[batch] / weights[batch].sum())[:, None]
            back = error @ net.out_of_hidden.T * (1.0 - inner * inner)
            slopes = (
                x.T @ back + decay * net.into_hidden,
                back.sum(axis=0),
                inner.T @ error + decay * net.out_of_hidden,
                error.sum(axis=0),
            )
            steps += 1
            for part, slope, mean, square in zip(parts, slopes, means, squares, strict=True):
                mean += 0.1 * (slope - mean)
                square += 0.001 * (slope * slope - square)
                part -= rate * (mean / (1.0 - 0.9**steps)) / (np.sqrt(square / (1.0 - 0.999**steps)) + 1e-8)
    return net


def best_temperature(logits: Floats, labels: Ints) -> float:
    """The softmax temperature with the least log loss of `labels` under `logits` [rows, domains]."""

    def loss(temperature: float) -> float:
        chance = softmax(logits / temperature)[np.arange(labels.size), labels]
        return float(-np.log(np.maximum(chance, 1e-12)).mean())

    return float(min(np.geomspace(0.4, 3.0, 80), key=loss))
