# SPDX-License-Identifier: Apache-2.0
"""Which expert is likely to be asked next: from recent traffic, and from what a conversation nearly was
about.

Requests follow each other in patterns: after the coder somebody asks the translator. Transitions between
experts are counted with a half-life, so that this hour weighs more than this morning. The router's second
choice for a conversation counts as a fraction of a request. A guess is only worth memory nobody else uses:
the manager loads it last, evicts nobody for it, and counts whether it was right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.metrics import ServerMetrics

HALF_LIFE_S = 1800.0
LIKELY = 0.2
"""Experts at least this likely to be asked next are worth a prefetch."""

FRESH_S = 60.0
"""A guess is made only this long after a request: nobody asking is no time to load."""

_RUNNER_UP_WEIGHT = 0.5
_EVIDENCE_NEEDED = 2.0
"""Decayed observations below which nothing is guessed: two requests are not a pattern."""


@dataclass(slots=True)
class _Count:
    value: float = 0.0
    at: float = 0.0

    def add(self, weight: float, now: float) -> None:
        self.value = self.read(now) + weight
        self.at = now

    def read(self, now: float) -> float:
        return self.value * math.exp2(-(now - self.at) / HALF_LIFE_S) if self.value else 0.0


@dataclass(slots=True)
class NextExpert:
    """Learns from requests as they come and says which expert is likely next. Times are monotonic seconds."""

    _after: dict[tuple[str | None, str], _Count] = field(default_factory=dict)
    _last: str | None = None
    _last_at: float = 0.0

    def observe(self, expert_id: str, now: float, runner_up: str | None = None, chance: float = 0.0) -> None:
        """A request went to ``expert_id``; the router's second choice had probability ``chance``."""
        self._count(self._last, expert_id, 1.0, now)
        self._count(None, expert_id, 1.0, now)
        if runner_up is not None and runner_up != expert_id and chance > 0.0:
            self._count(expert_id, runner_up, _RUNNER_UP_WEIGHT * chance, now)
        self._last, self._last_at = expert_id, now

    def likely(self, candidates: Collection[str], now: float) -> list[tuple[str, float]]:
        """Those of ``candidates`` likely to be asked next, with their probability, the likeliest first."""
        if now - self._last_at > FRESH_S:
            return []
        chances = self._chances(now)
        found = [(e, chances[e]) for e in candidates if chances.get(e, 0.0) >= LIKELY and e != self._last]
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def _count(self, before: str | None, expert_id: str, weight: float, now: float) -> None:
        self._after.setdefault((before, expert_id), _Count()).add(weight, now)

    def _chances(self, now: float) -> dict[str, float]:
        """Transitions from the last expert, with overall traffic where these are few."""
        following = {e: c.read(now) for (before, e), c in self._after.items() if before == self._last}
        overall = {e: c.read(now) for (before, e), c in self._after.items() if before is None}
        seen, all_seen = sum(following.values()), sum(overall.values())
        if all_seen < _EVIDENCE_NEEDED:
            return {}
        trust = seen / (seen + _EVIDENCE_NEEDED)
        return {
            e: trust * (following.get(e, 0.0) / seen if seen else 0.0) + (1 - trust) * overall[e] / all_seen
            for e in overall
        } | {e: trust * value / seen for e, value in following.items() if e not in overall and seen}


class Prefetch:
    """Marks experts worth loading ahead, and counts which guesses were right. Does nothing unless enabled."""

    def __init__(self, metrics: ServerMetrics, *, enabled: bool) -> None:
        self._metrics = metrics
        self._next = NextExpert() if enabled else None

    def observe(self, expert_id: str, runner_up: str | None = None, chance: float = 0.0) -> None:
        """A request goes to ``expert_id``; the router's second choice had probability ``chance``."""
        if self._next is not None:
            self._next.observe(expert_id, time.monotonic(), runner_up, chance)

    def mark(self, slots: Iterable[ExpertSlot]) -> None:
        """Set every expert's ``guess`` for the decision about to be made."""
        if self._next is None:
            return
        slots = list(slots)
        likely = dict(self._next.likely([s.expert_id for s in slots], time.monotonic()))
        for slot in slots:
            slot.guess = 0.0 if slot.held_down else likely.get(slot.expert_id, 0.0)

    def loading(self, slot: ExpertSlot) -> None:
        """A load begins; is it for a guess alone?"""
        kept = slot.warm or slot.config.pinned
        slot.unused = slot.guess > 0 and not (slot.waiters or slot.asked or kept)

    def used(self, slot: ExpertSlot) -> None:
        """A request reached the expert."""
        if slot.unused:
            slot.unused = False
            self._metrics.prefetched(slot.expert_id, "hit")

    def gone(self, slot: ExpertSlot) -> None:
        """The expert went, or its load failed, before anybody asked for it."""
        if slot.unused:
            slot.unused = False
            self._metrics.prefetched(slot.expert_id, "waste")
