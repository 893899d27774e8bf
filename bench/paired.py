# SPDX-License-Identifier: Apache-2.0
"""Medians and ratios of paired runs, with confidence intervals by the bootstrap."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

RESAMPLES = 2_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, and the range that holds it with 95 % confidence (percentile bootstrap over the pairs)."""

    value: float
    low: float
    high: float
    pairs: int

    def rounded(self, digits: int) -> dict[str, float | int]:
        """For a result file."""
        return {
            "value": round(self.value, digits),
            "ci95_low": round(self.low, digits),
            "ci95_high": round(self.high, digits),
            "pairs": self.pairs,
        }


def median(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median of values that stand for themselves, such as differences within pairs."""
    return _bootstrapped(values, statistics.median, seed)


def geometric_mean(ratios: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of ratios within pairs: as far above 1 for twice as much as below it for half."""
    return _bootstrapped(ratios, statistics.geometric_mean, seed)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of the values do not exceed (0 < share <= 1)."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -int(-share * len(ordered) // 1) - 1))]


def _bootstrapped(values: Sequence[float], figure: Callable[[Sequence[float]], float], seed: int) -> Estimate:
    chance = random.Random(seed)
    again = sorted(figure(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    low, high = again[int(0.025 * RESAMPLES)], again[int(0.975 * RESAMPLES) - 1]
    return Estimate(figure(values), low, high, len(values))
