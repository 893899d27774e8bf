# SPDX-License-Identifier: Apache-2.0
"""Carries out the core plan: tells engines which cores are theirs when that changes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from vllm_axion.serving.core_plan import CorePlan, Policy, plan_cores
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.residency import State

STAYS_BUSY_S = 2.0
"""An engine counts as busy this long after its last request: a pause in a talk is no reason to move
threads.
"""


class CoreSharing:
    """The cores of every loaded engine.

    Args:
        policy: as in the configuration.
        usable: logical CPUs engines may use.
    """

    def __init__(self, policy: Policy, usable: Sequence[int]) -> None:
        self._policy = policy
        self._usable = tuple(usable)
        # Only then does it matter who is busy, and is a change of that worth a look.
        self.follows_load = plan_cores(policy, self._usable, ["a"], ["a"]).policy == "disjoint"
        self._given: dict[str, tuple[int, ...]] = {}

    def changes(self, slots: Iterable[ExpertSlot]) -> list[tuple[ExpertSlot, tuple[int, ...]]]:
        """Engines that are to move, with the cores they move to. A new engine has all cores to begin with."""
        now = time.monotonic()
        loaded = [s for s in slots if s.state in (State.LOADED, State.DRAINING) and s.engine is not None]
        busy = sorted((s for s in loaded if is_busy(s, now)), key=lambda s: s.busy_since)
        ids = [s.expert_id for s in loaded]
        plan: CorePlan = plan_cores(self._policy, self._usable, ids, [s.expert_id for s in busy])
        before = {expert_id: self._given.get(expert_id, self._usable) for expert_id in ids}
        # An idle engine keeps what it has: it does not run, and moving it would only cost.
        wanted = {s.expert_id: plan.cores[s.expert_id] for s in busy}
        self._given = {expert_id: wanted.get(expert_id, before[expert_id]) for expert_id in ids}
        return [
            (s, self._given[s.expert_id]) for s in busy if self._given[s.expert_id] != before[s.expert_id]
        ]

    def next_look(self, slots: Iterable[ExpertSlot]) -> float | None:
        """When the last request of some engine will be long enough ago to give its cores to others."""
        if not self.follows_load:
            return None
        now = time.monotonic()
        ends = [s.last_used + STAYS_BUSY_S for s in slots if s.engine is not None and s.in_flight == 0]
        return min((end for end in ends if end > now), default=None)

    def cores_of(self, expert_id: str) -> tuple[int, ...]:
        """The cores an engine has now."""
        return self._given.get(expert_id, self._usable)

    def report(self) -> dict[str, Any]:
        """The cores part of ``/stats``."""
        return {
            "policy": self._policy,
            "now": "disjoint" if self.follows_load else "shared",
            "for_engines": list(self._usable),
        }


def is_busy(slot: ExpertSlot, now: float) -> bool:
    """Whether the engine has requests, or had one a moment ago."""
    return slot.in_flight > 0 or (slot.requests > 0 and now - slot.last_used < STAYS_BUSY_S)
