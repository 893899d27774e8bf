# SPDX-License-Identifier: Apache-2.0
"""The probe on embeddings: it separates what can be separated, and is sure only as far as it is right."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_axion.serving import embedding_probe
from vllm_axion.serving.embedding_cache import Vectors
from vllm_axion.serving.embedding_probe import EmbeddingProbe

DOMAINS = ("a", "b", "c")


def clouds(each: int, noise: float, seed: int = 0, dim: int = 64) -> tuple[list[str], Vectors]:
    """Texts of three domains around three centres, all of them far off in one direction."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, dim))
    labels = [domain for domain in DOMAINS for _ in range(each)]
    rows = np.repeat(centres, each, axis=0) + noise * chance.normal(size=(3 * each, dim)) + 20.0
    return labels, rows.astype(np.float32)


def test_what_lies_apart_is_told_apart_with_confidence() -> None:
    probe = EmbeddingProbe(*clouds(20, 0.5))
    labels, rows = clouds(30, 0.5, seed=1)
    for label, row in zip(labels, rows, strict=True):
        chances = probe.probabilities(row)
        assert max(chances, key=lambda domain: chances[domain]) == label
        assert chances[label] > 0.8
        assert sum(chances.values()) == pytest.approx(1.0)


def test_confidence_is_about_how_often_it_is_right() -> None:
    probe = EmbeddingProbe(*clouds(60, 3.0))
    labels, rows = clouds(300, 3.0, seed=1)
    judged = [probe.probabilities(row) for row in rows]
    right = np.array([max(c, key=lambda d: c[d]) == label for c, label in zip(judged, labels, strict=True)])
    sure = np.array([max(chances.values()) for chances in judged])
    assert 0.4 < right.mean() < 0.98
    assert abs(right.mean() - sure.mean()) < 0.08


def test_noise_is_answered_with_even_chances() -> None:
    chance = np.random.default_rng(0)
    labels = [domain for domain in DOMAINS for _ in range(40)]
    probe = EmbeddingProbe(labels, chance.normal(size=(120, 16)).astype(np.float32))
    for row in chance.normal(size=(20, 16)).astype(np.float32):
        assert max(probe.probabilities(row).values()) < 0.6


def test_one_example_among_many_of_others_is_enough_to_be_found() -> None:
    labels, rows = clouds(40, 0.5)
    few = [0, *range(40, 120)]
    probe = EmbeddingProbe([labels[at] for at in few], rows[few])
    chances = probe.probabilities(clouds(2, 0.5, seed=3)[1][0])
    assert max(chances, key=lambda domain: chances[domain]) == "a"


def test_the_nearest_example_is_one_of_the_domain_asked_for() -> None:
    labels, rows = clouds(10, 0.5)
    probe = EmbeddingProbe(labels, rows)
    assert probe.nearest(rows[4], "a") == 4
    nearest = probe.nearest(rows[4], "b")
    assert nearest is not None and labels[nearest] == "b"
    assert probe.nearest(rows[4], "nowhere") is None


@pytest.mark.parametrize("dim", [8, 200])
def test_its_weights_solve_the_ridge_regression_of_its_docstring(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_probe, "_RIDGES", (0.3,))
    labels, rows = clouds(20, 2.0, dim=dim)
    few = [0, 1, 2, *range(20, 60)]
    labels, rows = [labels[at] for at in few], rows[few]
    probe = EmbeddingProbe(labels, rows)
    placed = probe._placed(rows)
    target = np.array([DOMAINS.index(label) for label in labels])
    weight = np.clip(len(few) / 3 / np.bincount(target), 0.25, 8.0)[target]
    system = placed @ placed.T + np.diag(0.3 / weight)
    expected = placed.T @ np.linalg.solve(system, np.eye(3)[target] - 1 / 3)
    assert np.allclose(probe._weights, expected, atol=1e-8)


def test_equal_and_zero_vectors_are_no_accident() -> None:
    probe = EmbeddingProbe(["a", "b", "b"], np.zeros((3, 4), np.float32))
    assert sum(probe.probabilities(np.zeros(4, np.float32)).values()) == pytest.approx(1.0)


def test_another_width_and_a_single_domain_are_refused() -> None:
    with pytest.raises(ValueError, match="width 3"):
        EmbeddingProbe(["a", "b"], np.eye(2, dtype=np.float32)).probabilities(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="two domains"):
        EmbeddingProbe(["a", "a"], np.eye(2, dtype=np.float32))
