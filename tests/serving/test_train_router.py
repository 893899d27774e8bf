# SPDX-License-Identifier: Apache-2.0
"""The shipped model belongs to the examples and the features in this tree; the examples keep their rules."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vllm_axion.serving.config import BUILT_IN_DOMAINS
from vllm_axion.serving.ngram_classifier import NgramClassifier
from vllm_axion.serving.router_augment import Example
from vllm_axion.serving.router_model import MODEL_FILE, RouterModel, RouterModelError, shipped_model
from vllm_axion.serving.train_router import (
    DATA,
    DOMAINS,
    HERE,
    RESERVED_LANGUAGES,
    TrainingDataError,
    hash_of_data,
    hash_of_features,
    read_examples,
    train,
)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return read_examples(DATA)


RETRAIN = "run python -m vllm_axion.serving.train_router and commit the model"


def test_the_shipped_model_was_trained_on_the_examples_in_this_tree() -> None:
    assert shipped_model().data_hash == hash_of_data(DATA), RETRAIN


def test_the_shipped_model_fits_the_features_in_this_tree() -> None:
    assert shipped_model().features_hash == hash_of_features(), RETRAIN


def test_the_model_is_small_and_holds_no_pickle() -> None:
    path = HERE / MODEL_FILE
    assert path.stat().st_size <= 8_000_000
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON


def test_it_judges_exactly_the_built_in_domains() -> None:
    assert set(shipped_model().domains) == set(DOMAINS) == set(BUILT_IN_DOMAINS)


def test_every_domain_has_at_least_500_examples_half_of_all_in_spanish(examples: list[Example]) -> None:
    domains = Counter(example.domain for example in examples)
    assert set(domains) == set(DOMAINS) and min(domains.values()) >= 500
    languages = Counter(example.language for example in examples)
    assert languages["es"] >= 0.35 * len(examples)
    assert languages["en"] >= 0.25 * len(examples)


@pytest.mark.parametrize("domain", ["multilingual_expert", "coding", "multimodal_expert"])
def test_at_least_25_further_languages(examples: list[Example], domain: str) -> None:
    found = {e.language for e in examples if e.domain == domain} - {"es", "en", "mul", "zxx"}
    assert len(found) >= 25


def test_languages_kept_for_evaluation_stay_out(examples: list[Example]) -> None:
    assert not RESERVED_LANGUAGES & {example.language for example in examples}
    georgian = re.compile("[\u10a0-\u10ff]")
    assert not [example.text for example in examples if georgian.search(example.text)]


@pytest.mark.parametrize(
    ("line", "fault"),
    [("no tab", "language<TAB>text"), ("es\t", "language<TAB>text"), ("sw\tHabari", "kept for evaluation")],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, line: str, fault: str) -> None:
    for domain in DOMAINS:
        (tmp_path / f"{domain}.tsv").write_text("# comment\n\nes\thola\n", encoding="utf-8")
    (tmp_path / "coding.tsv").write_text(f"es\thola\n{line}\n", encoding="utf-8")
    with pytest.raises(TrainingDataError, match=rf"coding\.tsv:2: .*{fault}"):
        read_examples(tmp_path)


def test_line_breaks_are_read_and_repeats_left_out(tmp_path: Path) -> None:
    for domain in DOMAINS:
        (tmp_path / f"{domain}.tsv").write_text("es\tuno\\ndos\nes\tUno\\ndos\n", encoding="utf-8")
    assert [(e.domain, e.text) for e in read_examples(tmp_path)] == [(d, "uno\ndos") for d in DOMAINS]


def test_training_twice_gives_the_same_file(examples: list[Example], tmp_path: Path) -> None:
    few = examples[::40]
    for name in ("one", "two"):
        train(few)[0].save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, fresh = NgramClassifier(RouterModel.load(tmp_path / "one")), NgramClassifier(train(few)[0])
    one, other = loaded.judge("Escribe código Python"), fresh.judge("Escribe código Python")
    assert one is not None and other is not None
    assert np.allclose(one.chances, other.chances, atol=1e-5)


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for name, content in (("empty", b""), ("text", b"hello"), ("json", b"\x02\0\0\0\0\0\0\0{}")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(RouterModelError, match="not a router model"):
            RouterModel.load(path)
