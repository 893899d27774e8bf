# SPDX-License-Identifier: Apache-2.0
"""The user's own examples and domains, on top of the trained classifier, without training.

A text's logits are raised by what it shares with the declared examples, as in kernel ridge regression:
f = g·k(x)·(K + λ)⁻¹·r in the cosine of n-grams, where r is what each declared example lacks to win its domain
and 0 for the shipped prototypes, so that words both have in common raise nothing. The gain g makes up for an
unseen text sharing less with the examples than they do with themselves: the largest at which prototypes that
are left out stay where they were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vllm_axion.serving.ngram_classifier import Floats, Judgement, NgramClassifier, distinct, softmax
from vllm_axion.serving.ngram_features import COLUMNS, Ints, Pieces

RIDGE = 0.3
LEAD = 2.0  # logits by which a declared example wins its domain
UNHEARD_OF = 5.0  # logits a new domain is behind all others together before any correction
GAINS = (1.0, 1.5, 2.0, 3.0, 4.0)
MOST_STRAY = 0.01  # of the prototypes
MOST_EXAMPLES = 2000  # of a domain


class Shared:
    """What a text that is still coming has in common with the examples, as far as it is settled."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.parts: list[Pieces] = []
        self.seen = np.zeros(COLUMNS, np.bool_)
        self.products: Floats = np.zeros(1)
        self.square = 0.0


class DeclaredExamples:
    """Immutable after construction, hence safe to share between threads."""

    def __init__(self, classifier: NgramClassifier, declared: Mapping[str, Sequence[str]]) -> None:
        """`declared`: domain -> texts. Texts without a letter are left out."""
        self._classifier = classifier
        texts = [(d, text) for d, listed in declared.items() for text in listed[:MOST_EXAMPLES]]
        judged = [(d, classifier.judge(text)) for d, text in texts]
        rows = [(d, judgement) for d, judgement in judged if judgement is not None]
        new = dict.fromkeys(d for d, _ in rows if d not in classifier.domains)
        self.domains: tuple[str, ...] = (*classifier.domains, *new)
        self._own = len(rows)
        if not rows:
            return
        for d, listed in classifier.model.prototypes.items():
            rows += [(d, judgement) for judgement in map(classifier.judge, listed) if judgement is not None]
        labels = np.array([self.domains.index(d) for d, _ in rows])
        columns = [_columns(judgement) for _, judgement in rows]
        # idf squared: what a few examples share by chance is mostly common words.
        self._values: Floats = classifier.model.weights[:, -1].astype(np.float64)
        row_of = np.repeat(np.arange(len(rows)), [found.size for found in columns])
        column_of = np.concatenate(columns)
        values = np.concatenate([self._unit(found) for found in columns])
        order = np.argsort(column_of, kind="stable")
        self._rows, self._row_values = row_of[order], values[order]
        self._starts: Ints = np.concatenate(([0], np.cumsum(np.bincount(column_of, minlength=COLUMNS))))
        logits = np.stack([self._extended(judgement) for _, judgement in rows])
        lack = np.zeros((len(rows), len(self.domains)))
        own = np.arange(self._own)
        others = logits[: self._own].copy()
        others[own, labels[: self._own]] = -np.inf
        lack[own, labels[: self._own]] = np.maximum(
            0.0, others.max(axis=1) + LEAD - logits[own, labels[: self._own]]
        )
        kernel = np.stack([self._similarities(found) for found in columns])
        inverse = np.linalg.inv(kernel + RIDGE * np.eye(len(rows)))
        votes = inverse @ lack
        left_out = lack - votes / np.diag(inverse)[:, None]
        before = logits.argmax(axis=1)

        def stray(gain: float) -> float:
            after = (logits + gain * left_out).argmax(axis=1)
            return float((after != before)[self._own :].mean())

        gain = max((g for g in GAINS if stray(g) <= MOST_STRAY), default=GAINS[0])
        self._votes: Floats = gain * votes

    def chances(self, judgement: Judgement, shared: Shared | None = None) -> Floats:
        """Chances in the order of `domains`, sum 1. `shared`: of a text that is still coming, what the call
        before has summed; the result is the same but for rounding."""
        if not self._own:
            return judgement.chances
        if shared is None:
            similarities = self._similarities(_columns(judgement))
        else:
            similarities = self._continued(judgement, shared)
        return softmax(self._extended(judgement) + similarities @ self._votes)

    def _continued(self, judgement: Judgement, shared: Shared) -> Floats:
        settled = judgement.read[:-2]  # later text may still change the last two
        known = len(shared.parts)
        if known > len(settled) or any(a is not b for a, b in zip(shared.parts, settled, strict=False)):
            shared.clear()
            known = 0
        for part in settled[known:]:
            new = distinct(part.columns)
            new = new[~shared.seen[new]]
            shared.seen[new] = True
            shared.products = shared.products + self._products(new)
            shared.square += float(np.square(self._values[new]).sum())
            shared.parts.append(part)
        still_open = distinct(np.concatenate([part.columns for part in judgement.read[-2:]]))
        still_open = still_open[~shared.seen[still_open]]
        square = shared.square + float(np.square(self._values[still_open]).sum())
        return np.asarray((shared.products + self._products(still_open)) / (np.sqrt(square) or 1.0))

    def _extended(self, judgement: Judgement) -> Floats:
        """Logits, with those of new domains far behind."""
        known = judgement.logits - np.log(np.exp(judgement.logits - judgement.logits.max()).sum())
        known = known - judgement.logits.max()
        return np.concatenate((known, np.full(len(self.domains) - known.size, -UNHEARD_OF)))

    def _unit(self, columns: Ints) -> Floats:
        values = self._values[columns]
        return np.asarray(values / (np.linalg.norm(values) or 1.0))

    def _similarities(self, columns: Ints) -> Floats:
        """Cosines with every example."""
        return np.asarray(self._products(columns) / (np.linalg.norm(self._values[columns]) or 1.0))

    def _products(self, columns: Ints) -> Floats:
        """Inner products with every example, through the postings of the given columns only."""
        starts = self._starts[columns]
        lengths = self._starts[columns + 1] - starts
        before = np.cumsum(lengths) - lengths
        postings = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
        products = self._row_values[postings] * np.repeat(self._values[columns], lengths)
        rows = int(self._rows.max()) + 1
        return np.bincount(self._rows[postings], products, minlength=rows).astype(np.float64, copy=False)


def _columns(judgement: Judgement) -> Ints:
    return distinct(np.concatenate([part.columns for part in judgement.read]))
