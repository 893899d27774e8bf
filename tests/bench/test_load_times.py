# SPDX-License-Identifier: Apache-2.0
"""The README's table of measured facts is the last result that was written, not a hand's work."""

from __future__ import annotations

import json
from pathlib import Path

from bench import load_times


def test_readme_shows_the_result_that_is_in_the_tree(repository: Path) -> None:
    page = (repository / "README.md").read_text(encoding="utf-8")
    result = json.loads(load_times.RESULTS.read_text(encoding="utf-8"))
    assert load_times.renewed(page, result) == page, "run: python bench/load_times.py --readme"


def test_result_says_when_where_and_with_what_it_was_measured() -> None:
    result = json.loads(load_times.RESULTS.read_text(encoding="utf-8"))
    assert result["date"] and result["versions"]["vllm-axion"] and result["versions"]["torch"]
    assert {"cpu", "cores", "ram_bytes", "load_average_before"} <= set(result["machine"])


def test_medians_of_the_table_rest_on_at_least_five_reloads() -> None:
    samples = json.loads(load_times.RESULTS.read_text(encoding="utf-8"))["samples"]
    assert len(samples["reload"]) >= 5
    assert len(samples["unload"]) >= 5
