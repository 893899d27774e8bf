# SPDX-License-Identifier: Apache-2.0
"""The classifier under the router: its closed forms against plain recomputation, and its calibration."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_axion.serving import ngram_classifier
from vllm_axion.serving.ngram_classifier import NgramClassifier, best_temperature, extract, softmax
from vllm_axion.serving.semantic_router import built_in_examples

FEW = {
    "fruit": ["manzana roja", "una pera verde", "zumo de naranja", "sweet apple"],
    "metal": ["acero templado", "hierro y cobre", "iron bar", "la plata brilla"],
}


@pytest.fixture(scope="module")
def shipped() -> NgramClassifier:
    return NgramClassifier(built_in_examples())


def test_leave_one_out_scores_equal_a_fit_without_the_example() -> None:
    # idf and balance also depend on the example left out: held still here, the identity is about the solve.
    whole = NgramClassifier(FEW)
    system = whole._system().astype(np.float64)
    truth = whole._truth().astype(np.float64)
    quick = whole.leave_one_out()
    for left_out in range(len(whole.texts)):
        rest = [row for row in range(len(whole.texts)) if row != left_out]
        votes = np.linalg.solve(system[np.ix_(rest, rest)], truth[rest])
        assert quick[left_out] == pytest.approx(system[left_out, rest] @ votes, abs=1e-4)


def test_the_fixed_temperature_is_the_one_leave_one_out_asks_for(shipped: NgramClassifier) -> None:
    fitted = best_temperature(shipped.leave_one_out(), shipped.labels)
    assert fitted == pytest.approx(ngram_classifier.TEMPERATURE, rel=0.2)


def test_leave_one_out_answers_are_mostly_right_and_as_sure_as_they_say(shipped: NgramClassifier) -> None:
    chances = shipped.probabilities(shipped.leave_one_out())
    right = chances.argmax(axis=1) == shipped.labels
    claimed = chances.max(axis=1)
    assert right.mean() >= 0.88
    bins = np.minimum((claimed * 10).astype(int), 9)
    error = sum(
        (bins == b).mean() * abs(right[bins == b].mean() - claimed[bins == b].mean()) for b in np.unique(bins)
    )
    assert error <= 0.05


def test_scores_are_votes_of_examples_weighted_by_similarity() -> None:
    classifier = NgramClassifier(FEW)
    judged = classifier.judge("una manzana verde")
    assert judged is not None
    votes = np.linalg.solve(classifier._system(), classifier._truth()).astype(np.float64)
    by_example = classifier._similarities(judged.columns, judged.weights) @ votes
    assert judged.scores == pytest.approx(by_example, abs=1e-4)


def test_the_nearest_example_of_a_domain_is_the_one_most_alike() -> None:
    classifier = NgramClassifier(FEW)
    judged = classifier.judge("manzanas rojas")
    assert judged is not None
    assert classifier.nearest(judged, "fruit") == "manzana roja"
    assert classifier.nearest(judged, "no such domain") is None


def test_accents_and_case_left_out_still_match() -> None:
    plain, accented = extract("QUE ES UNA FUNCION"), extract("qué es una función")
    shared = np.intersect1d(plain.columns, accented.columns).size
    assert shared >= 0.9 * plain.columns.size


def test_a_text_without_letters_has_no_features() -> None:
    for text in ("", "123", "…", "🙂"):
        assert not extract(text).columns.size


def test_one_domain_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two domains"):
        NgramClassifier({"only": ["hola"], "empty": [""]})


def test_softmax_sums_to_one_along_the_last_axis() -> None:
    assert softmax(np.array([[0.0, 1000.0], [1.0, 1.0]])) == pytest.approx(np.array([[0.0, 1.0], [0.5, 0.5]]))
