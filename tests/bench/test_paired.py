# SPDX-License-Identifier: Apache-2.0
"""Medians, ratios and their intervals."""

from __future__ import annotations

import pytest

from bench.paired import geometric_mean, median, percentile


def test_an_interval_holds_the_value_and_narrows_with_more_pairs() -> None:
    few = median([0.1, 0.2, 0.3, 0.4, 0.5])
    many = median([0.1, 0.2, 0.3, 0.4, 0.5] * 40)
    for found in (few, many):
        assert found.low <= found.value <= found.high and found.value == 0.3
    assert many.high - many.low < few.high - few.low


def test_half_and_twice_balance_each_other() -> None:
    assert geometric_mean([0.5, 2.0]).value == pytest.approx(1.0)


def test_the_same_values_give_the_same_interval() -> None:
    assert median([1.0, 5.0, 2.0]) == median([1.0, 5.0, 2.0])


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_percentiles_are_values_that_were_seen(share: float, value: int) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], share) == value
