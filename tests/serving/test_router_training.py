# SPDX-License-Identifier: Apache-2.0
"""The training in parts: folds that hold topics and languages together, stages that learn, true variants."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vllm_axion.serving.ngram_classifier import softmax
from vllm_axion.serving.router_augment import Example, gibberish, variants
from vllm_axion.serving.router_training import (
    FOLDS,
    best_temperature,
    folds_of,
    rows_of,
    train_first_stage,
    train_second_stage,
)
from vllm_axion.serving.train_router import DATA, read_examples


def test_a_language_is_held_out_whole_and_no_fold_is_empty() -> None:
    examples = read_examples(DATA)[::5]
    folds = folds_of(examples)
    assert set(folds.tolist()) == set(range(FOLDS))
    of_language: dict[str, set[int]] = {}
    for example, fold in zip(examples, folds.tolist(), strict=True):
        if example.language not in ("es", "en", "mul", "zxx"):
            of_language.setdefault(example.language, set()).add(fold)
    assert len(of_language) > 20 and all(len(found) == 1 for found in of_language.values())


def test_the_first_stage_learns_and_leaves_out_what_it_is_told_to() -> None:
    fruit = ["una manzana roja", "la pera verde", "zumo de naranja", "manzana y pera", "naranja y manzana"]
    metal = ["acero templado", "hierro y cobre", "barra de hierro", "cobre y acero", "acero y hierro"]
    examples = [Example("fruit", "es", text) for text in fruit] + [Example("metal", "es", t) for t in metal]
    labels = [0] * 5 + [1] * 5
    rows = rows_of(examples, labels, [1.0] * 10, list(range(10)))
    keep = np.array([True] * 4 + [False] + [True] * 4 + [False])
    stage = train_first_stage(rows, keep, 2, epochs=30)
    logits = stage.logits(rows, np.arange(10))
    assert logits.shape == (10, 4)
    assert (logits[:, :2].argmax(axis=1) == labels).all()
    nothing = train_first_stage(rows, keep & (np.array(labels) == 0), 2, epochs=1)
    assert (nothing.logits(rows, np.arange(10))[:, :2].argmax(axis=1) == 0).all()


def test_the_second_stage_learns_what_no_line_can_tell() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    labels = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).astype(int)
    net = train_second_stage(x, np.eye(2)[labels], np.ones(2000), epochs=60, noise=0.02)
    assert (net.logits(x).argmax(axis=1) == labels).mean() > 0.95


def test_the_temperature_undoes_boasting() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5000, 3))
    chances = softmax(logits)
    labels = (chances.cumsum(axis=1) < rng.random((5000, 1))).sum(axis=1)
    assert best_temperature(logits * 2.0, labels) == pytest.approx(2.0, rel=0.15)


def test_variants_keep_label_and_language_and_are_the_same_each_time() -> None:
    example = Example("coding", "es", "¿Cómo ordeno una lista en Python?")
    code = [Example("coding", "zxx", "xs.sort()")]
    made = variants(example, 9, random.Random(1), [example], code)
    assert len(made) == 9 and {(v.domain, v.language) for v in made} == {("coding", "es")}
    assert len({v.text for v in made}) > 4
    assert made == variants(example, 9, random.Random(1), [example], code)


def test_gibberish_is_text_but_no_words() -> None:
    rng = random.Random(0)
    for _ in range(100):
        assert gibberish(rng).strip()
