# SPDX-License-Identifier: Apache-2.0
"""From an encoder's vectors to domain probabilities: a linear probe on labelled examples, in closed form.

Vectors are centred on the examples' mean (encoders made from language models crowd all texts into one
direction) and scaled to length 1. The probe is ridge regression in its dual form, f = k(x)·(K + λW⁻¹)⁻¹·Y,
with W balancing domains of few examples. λ and the softmax temperature are those with the least log loss on
the exact leave-one-out values, y_i - α_i / (K + λW⁻¹)⁻¹_ii: answers given without the example itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_axion.serving.embedding_cache import Vectors

Floats = NDArray[np.float64]

_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
_TEMPERATURES = np.geomspace(0.02, 2.0, 25)


class EmbeddingProbe:
    """Immutable after construction, hence safe to share between threads."""

    def __init__(self, labels: Sequence[str], vectors: Vectors) -> None:
        """`labels` [n] are the domains of the examples, `vectors` [n, dim] their embeddings.

        Raises ValueError when there are fewer than two domains."""
        self.domains: tuple[str, ...] = tuple(dict.fromkeys(labels))
        if len(self.domains) < 2:
            raise ValueError("the router needs examples of at least two domains")
        place = {domain: at for at, domain in enumerate(self.domains)}
        target = np.array([place[label] for label in labels])
        self._mean: Floats = _unit(vectors.astype(np.float64)).mean(axis=0)
        rows = self._placed(vectors)
        self._rows: Vectors = rows.astype(np.float32)
        self._labels = target
        truth = np.eye(len(self.domains))[target] - 1.0 / len(self.domains)
        balance = len(target) / len(self.domains) / np.bincount(target)
        scale = np.sqrt(np.clip(balance, 0.25, 8.0)[target])[:, None]
        # (K + λW⁻¹)⁻¹ = √W (√W K √W + λ)⁻¹ √W, by one decomposition for every λ; what lies outside the span
        # of `u` (more examples than the vectors are wide) has the eigenvalue λ.
        u, s, _ = np.linalg.svd(scale * rows, full_matrices=False)
        inside, outside = u.T @ (scale * truth), 1.0 - np.square(u).sum(axis=1)
        rest = scale * truth - u @ inside
        best = np.inf
        for ridge in _RIDGES:
            shrink = 1.0 / (np.square(s) + ridge)
            votes = scale * (u @ (shrink[:, None] * inside) + rest / ridge)
            diagonal = scale[:, 0] ** 2 * (np.square(u) @ shrink + outside / ridge)
            left_out = truth - votes / diagonal[:, None]
            for temperature in _TEMPERATURES:
                chance = _softmax(left_out / temperature)[np.arange(target.size), target]
                loss = float(-np.log(np.maximum(chance, 1e-12)).mean())
                if loss < best:
                    best = loss
                    self._temperature = float(temperature)
                    self._weights: Floats = rows.T @ votes

    @property
    def dim(self) -> int:
        """Width of the vectors it was fitted on."""
        return int(self._mean.size)

    def probabilities(self, vector: Vectors) -> dict[str, float]:
        """Calibrated probabilities of the domains (sum 1) for one embedding [dim].

        Raises ValueError for another width."""
        if vector.shape != self._mean.shape:
            raise ValueError(f"a vector of width {vector.size} is not one of {self._mean.size}")
        scores = (self._placed(vector[None])[0][:, None] * self._weights).sum(axis=0)
        return dict(zip(self.domains, _softmax(scores / self._temperature).tolist(), strict=True))

    def nearest(self, vector: Vectors, domain: str) -> int | None:
        """The place among the examples of the one of `domain` most like the vector [dim]."""
        if domain not in self.domains or vector.shape != self._mean.shape:
            return None
        alike = (self._rows * self._placed(vector[None])[0].astype(np.float32)).sum(axis=1)
        alike[self._labels != self.domains.index(domain)] = -np.inf
        return int(alike.argmax())

    def _placed(self, vectors: Vectors) -> Floats:
        return _unit(_unit(vectors.astype(np.float64)) - self._mean)


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0.0, lengths, 1.0))


def _softmax(scores: Floats) -> Floats:
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))
