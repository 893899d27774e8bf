# SPDX-License-Identifier: Apache-2.0
"""The table of docs/performance.md is the last result that was written, and its verdicts follow from it."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bench import serving
from bench.machine import renewed


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(serving.RESULT.read_text(encoding="utf-8"))
    return found


def test_page_shows_the_result_that_is_in_the_tree(result: dict[str, Any]) -> None:
    page = serving.PAGE.read_text(encoding="utf-8")
    assert renewed(page, "serving", serving.table(result)) == page, (
        "run: python bench/serving.py --table-only --readme"
    )


def test_result_says_when_where_and_how_busy_the_machine_was(result: dict[str, Any]) -> None:
    assert result["date"] and result["versions"]["torch"] and result["machine"]["architecture"] == "x86_64"
    assert {"load_average_before", "cpu", "cores"} <= set(result["machine"])
    assert "load_average_after" in result
    assert "x86-64" in serving.table(result)


def test_differences_and_ratios_rest_on_pairs(result: dict[str, Any]) -> None:
    assert result["latency"]["added_ms"]["pairs"] >= 300
    for name in ("to_stock", "two_to_one"):
        found = result["throughput"][name]
        assert found["pairs"] >= 10 and found["ci95_low"] <= found["value"] <= found["ci95_high"]


@pytest.mark.parametrize(
    ("part", "field", "bad", "row"),
    [
        ("loads", "reload_s", {"value": 1.1, "ci95_low": 1.0, "ci95_high": 1.2}, "reload, to"),
        ("latency", "added_ms", {"value": 0.16, "ci95_low": 0.1, "ci95_high": 0.2}, "latency added"),
        ("throughput", "to_stock", {"value": 0.97, "ci95_low": 0.9, "ci95_high": 1.0}, "throughput"),
        (
            "throughput",
            "two_to_one",
            {"value": 0.89, "ci95_low": 0.8, "ci95_high": 1.0},
            "16 streams over two",
        ),
        ("health", "p99_ms", 50.1, "`/health`"),
        ("burst", "loads", 11, "200 first requests"),
        ("burst", "answered_or_told_when", 199, "200 first requests"),
    ],
)
def test_a_figure_beyond_its_target_is_said_to_be(
    result: dict[str, Any], part: str, field: str, bad: Any, row: str
) -> None:
    changed = copy.deepcopy(result)
    changed[part][field] = bad
    line = next(line for line in serving.table(changed).splitlines() if line.startswith(f"| {row}"))
    assert line.endswith("| **no** |")
