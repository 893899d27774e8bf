# SPDX-License-Identifier: Apache-2.0
"""Which cores each engine runs on: pure functions.

Engines sleep between parallel regions, so idle ones cost nothing and a busy one may have every core. When
several are busy at once there are two ways to divide them:

* shared: every engine runs as many threads as there are cores and the kernel shares them out. Best on small
  machines (2 engines on 2 cores gave 2.1 times the summed speed of one; one pinned core each 1.9 times).
* disjoint: each busy engine gets cores of its own. With many cores, threads of two engines that take turns
  on a core make every barrier wait for the one that is off it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Policy = Literal["auto", "shared", "disjoint"]

SHARED_UP_TO = 4
"""Cores up to which ``auto`` means shared."""


@dataclass(frozen=True, slots=True)
class CorePlan:
    """Cores for engines, and the policy that gave them."""

    policy: Literal["shared", "disjoint"]
    cores: Mapping[str, tuple[int, ...]]


def usable_cores() -> list[int]:
    """Logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def engine_cores(usable: Sequence[int]) -> tuple[int, ...]:
    """The cores engines may use: all of a small machine, else all but the first, which is the API
    process's.
    """
    ordered = tuple(sorted(usable))
    return ordered if len(ordered) <= SHARED_UP_TO else ordered[1:]


def plan_cores(policy: Policy, cores: Sequence[int], engines: Sequence[str], busy: Sequence[str]) -> CorePlan:
    """Cores for every loaded engine.

    Args:
        policy: what the configuration asks for.
        cores: logical CPUs engines may use, neighbours next to each other.
        engines: loaded engines.
        busy: those with requests in flight, the one busy longest first.

    A disjoint plan divides all cores among the busy engines, the first ones getting one more where it
    doesn't come out even; an idle engine may have them all, since it does not run. With more busy engines
    than cores it is shared.
    """
    everything = tuple(cores)
    disjoint = policy == "disjoint" or (policy == "auto" and len(everything) > SHARED_UP_TO)
    if not disjoint or len(busy) > len(everything):
        return CorePlan("shared", dict.fromkeys(engines, everything))
    given: dict[str, tuple[int, ...]] = dict.fromkeys(engines, everything)
    start = 0
    for index, engine in enumerate(busy):
        share = len(everything) // len(busy) + (index < len(everything) % len(busy))
        given[engine] = everything[start : start + share]
        start += share
    return CorePlan("disjoint", given)
