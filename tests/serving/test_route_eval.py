# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation against values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vllm_axion.serving.route_eval import (
    Answer,
    Labelled,
    RouteEvalError,
    auroc,
    calibration_error,
    figures,
    read_labelled,
    reliability,
    summary,
    wilson,
)

DOMAINS = ("general", "coding")


def answers(*told: tuple[str, float]) -> list[Answer]:
    return [Answer(domain, sure, domain, sure < 0.5, 1.0) for domain, sure in told]


def test_wilson_gives_the_textbook_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4)
    assert wilson(15, 148) == pytest.approx([0.0624, 0.1605], abs=1e-4)
    assert wilson(0, 20) == pytest.approx([0.0, 0.1611], abs=1e-4)
    assert wilson(0, 0) is None


def test_auroc_is_the_share_of_ordered_pairs() -> None:
    confidence, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, False])
    assert auroc(confidence, right) == 0.75
    assert auroc(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    assert auroc(confidence, np.array([True] * 4)) is None


def test_calibration_error_weighs_each_bin_by_its_size() -> None:
    confidence, right = np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True])
    assert calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    assert [entry["examples"] for entry in reliability(confidence, right)] == [2, 2]
    assert calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0.0


def test_figures_tell_domains_languages_groups_and_confusion_apart() -> None:
    rows = [
        Labelled("general", "hola", "es", "usual"),
        Labelled("general", "hi", "en", "unseen"),
        Labelled("coding", "def f():", "en", "unseen"),
    ]
    result = figures(rows, answers(("general", 0.9), ("coding", 0.4), ("coding", 0.8)))
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["per_domain"]["general"]["accuracy"] == 0.5
    assert result["per_language"]["en"]["accuracy"] == 0.5
    assert result["per_group"]["unseen"]["examples"] == 2
    assert result["confusion"] == {
        "general": {"general": 1, "coding": 1},
        "coding": {"general": 0, "coding": 1},
    }
    assert result["coverage"]["coverage"] == pytest.approx(2 / 3) and result["coverage"]["accuracy"] == 1.0
    assert any("66.7 %" in line for line in summary(result))


def test_going_elsewhere_after_an_abstention_counts_as_routed_not_as_judged() -> None:
    told = [Answer("coding", 0.4, "general", True, 1.0)]
    result = figures([Labelled("coding", "x")], told)
    assert (result["accuracy"], result["routed_accuracy"]) == (1.0, 0.0)
    assert result["coverage"]["accuracy"] is None and list(summary(result))


def test_lines_comments_and_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "set.tsv"
    path.write_text("# a comment\n\ngeneral\tuno\\ndos\ncoding\tx\n", encoding="utf-8")
    assert read_labelled(path, DOMAINS) == [Labelled("general", "uno\ndos"), Labelled("coding", "x")]
    (tmp_path / "set_meta.tsv").write_text("es\tusual\nzxx\tunseen\n", encoding="utf-8")
    assert [(row.language, row.group) for row in read_labelled(path, DOMAINS)] == [
        ("es", "usual"),
        ("zxx", "unseen"),
    ]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"general\n", r"set\.tsv:1: not of the form"),
        (b"general\t\n", r"set\.tsv:1: not of the form"),
        (b"law\ttext\n", r"set\.tsv:1: domain 'law' is none of general, coding"),
        (b"general\t\xff\n", "not UTF-8"),
        (b"# nothing\n", "no lines"),
    ],
)
def test_a_bad_file_is_told_with_its_line(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "set.tsv").write_bytes(content)
    with pytest.raises(RouteEvalError, match=fault):
        read_labelled(tmp_path / "set.tsv", DOMAINS)


def test_a_side_file_of_another_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.tsv").write_text("general\tx\ngeneral\ty\n")
    (tmp_path / "set_meta.tsv").write_text("es\tusual\n")
    with pytest.raises(RouteEvalError, match="1 lines, but set"):
        read_labelled(tmp_path / "set.tsv", DOMAINS)
