# SPDX-License-Identifier: Apache-2.0
"""Who stays in memory: the decisions of the expert manager as pure functions.

``decide`` looks at a picture of the world and says what to do now and when to look again. It has no clock,
no process and no lock, so every rule can be tested alone. The rules, in order:

1. Loads happen one at a time (building a vLLM configuration writes to the process environment).
2. An expert that nobody used for ``auto_unload_after_s`` is unloaded; pinned and warm ones are exempt.
3. What requests wait for comes first, oldest wait first; then what an operator asked for; then the warm
   pool, then good guesses of what is asked next: these two only ever take memory that is free.
4. Room is made by unloading idle experts: longest idle first, weighted by what it costs to load them again,
   warm ones last. A busy or a pinned expert is never a victim, nor one that has just been loaded
   (``min_residency_s``).
5. If the head of the queue has waited long and only busy experts are in its way, the one loaded longest
   takes no new requests, finishes those it has, and then makes room: nobody is cut off and nobody starves.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


class State(enum.StrEnum):
    """Life of an expert."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    DRAINING = "draining"
    FAILED = "failed"


RESIDENT = frozenset({State.LOADING, State.LOADED, State.DRAINING})
"""States in which an expert holds memory and counts against ``max_loaded_experts``."""


@dataclass(frozen=True, slots=True)
class ExpertView:
    """One expert as the decisions see it. Times are seconds on one monotonic clock, sizes are bytes."""

    expert_id: str
    state: State = State.UNLOADED
    priority: int = 3
    pinned: bool = False
    warm: bool = False
    guess: float = 0.0
    """Probability that it is asked next, if that makes it worth loading ahead; else 0."""
    unused: bool = False
    """Loaded on a guess and not asked since."""
    asked: bool = False
    """An operator asked for it to be loaded and has not been served yet."""
    held_down: bool = False
    """An operator unloaded it: the warm pool must not bring it back by itself."""
    in_flight: int = 0
    waiters: int = 0
    oldest_wait: float = 0.0
    last_used: float = 0.0
    loaded_at: float = 0.0
    need_bytes: int = 0
    """Predicted need of a load."""
    held_bytes: int = 0
    """Reserved while resident: the larger of prediction and measurement."""
    reload_s: float = 1.0
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits the decisions obey."""

    allowed_bytes: int
    max_loaded: int
    min_residency_s: float = 10.0
    auto_unload_after_s: float = 300.0
    """0: never."""
    lazy: bool = True
    """False: every expert is kept loaded as if it were in the warm pool."""

    @property
    def unloads_idle(self) -> bool:
        """Whether an expert nobody uses is ever unloaded for that."""
        return self.lazy and self.auto_unload_after_s > 0


@dataclass(frozen=True, slots=True)
class World:
    """Everything a decision depends on."""

    now: float
    experts: Sequence[ExpertView]
    rules: Rules
    other_bytes: int = 0
    """Memory in use by anything that is not an expert."""


@dataclass(frozen=True, slots=True)
class Load:
    """Start loading an expert."""

    expert_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Drain an expert and end its engine."""

    expert_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelLoad:
    """Stop a load that nobody waits for any more."""

    expert_id: str


Action = Load | Unload | CancelLoad
_Fits = Callable[[Sequence["ExpertView"]], bool]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to decide again even if nothing happens (``None``: only when something
    happens).
    """

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None


def can_ever_fit(need_bytes: int, expert: ExpertView, world: World) -> bool:
    """Whether a server with nothing but its pinned experts loaded could hold this one."""
    pinned = sum(
        e.held_bytes or e.need_bytes for e in world.experts if e.pinned and e.expert_id != expert.expert_id
    )
    return need_bytes + pinned <= world.rules.allowed_bytes


def residency_floor_s(expert: ExpertView, rules: Rules) -> float:
    """How long an expert stays at least once loaded: five times what it cost to load, at most
    ``min_residency_s``.
    """
    return 0.0 if expert.unused else min(rules.min_residency_s, 5.0 * expert.reload_s)


def is_protected(expert: ExpertView) -> bool:
    """Exempt from the idle timer."""
    return expert.pinned or expert.warm


def decide(world: World) -> Plan:
    """Apply the rules of this module's docstring to the world."""
    actions: list[Action] = []
    wakes: list[float] = []

    for expert in world.experts:
        if not _is_idle(expert) or is_protected(expert) or expert.asked or not world.rules.unloads_idle:
            continue
        due = expert.last_used + world.rules.auto_unload_after_s
        if due <= world.now:
            actions.append(Unload(expert.expert_id, "idle"))
        else:
            wakes.append(due)
    leaving = {a.expert_id for a in actions if isinstance(a, Unload)}

    wanted = list(_wanted(world))
    loading = [e for e in world.experts if e.state is State.LOADING]
    if loading:
        if wanted and wanted[0].waiters:
            actions += [CancelLoad(e.expert_id) for e in loading if _is_unwanted(e)]
    else:
        for expert in wanted:
            room = _make_room(expert, world, leaving)
            actions += room.actions
            if room.wake_at is not None:
                wakes.append(room.wake_at)
            # Whoever is first in the queue is not overtaken; of the warm pool, whatever fits is loaded.
            if room.actions or expert.waiters or expert.asked:
                break
    return Plan(tuple(actions), min(wakes, default=None))


def _is_idle(expert: ExpertView) -> bool:
    return expert.state is State.LOADED and expert.in_flight == 0 and expert.waiters == 0


def _is_unwanted(expert: ExpertView) -> bool:
    return not (expert.waiters or expert.asked or is_protected(expert))


def _wanted(world: World) -> Iterable[ExpertView]:
    """Experts somebody wants loaded and that may be loaded now, the most urgent first."""
    idle = [
        e
        for e in world.experts
        if e.state is State.UNLOADED or (e.state is State.FAILED and e.retry_at <= world.now)
    ]
    yield from sorted((e for e in idle if e.waiters), key=lambda e: (e.oldest_wait, e.priority))
    yield from sorted((e for e in idle if e.asked and not e.waiters), key=lambda e: e.priority)
    yield from sorted(
        (e for e in idle if _fills_warm_pool(e, world.rules) and not (e.asked or e.waiters)),
        key=lambda e: (not e.pinned, e.priority),
    )
    yield from sorted(
        (e for e in idle if _is_guess(e) and not _fills_warm_pool(e, world.rules)),
        key=lambda e: (-e.guess, e.priority),
    )


def _fills_warm_pool(expert: ExpertView, rules: Rules) -> bool:
    # A failed expert is tried again by the next request, not by the pool: that would be a loop of failures.
    keeps = is_protected(expert) or not rules.lazy
    return keeps and not expert.held_down and expert.state is State.UNLOADED


def _is_guess(expert: ExpertView) -> bool:
    return expert.guess > 0 and expert.state is State.UNLOADED and not (expert.asked or expert.waiters)


def _make_room(wanted: ExpertView, world: World, leaving: set[str]) -> Plan:
    rules = world.rules
    resident = [e for e in world.experts if e.state in RESIDENT]
    staying = [e for e in resident if e.state is not State.DRAINING and e.expert_id not in leaving]

    def fits(holders: Sequence[ExpertView]) -> bool:
        held = world.other_bytes + sum(e.held_bytes for e in holders)
        return len(holders) < rules.max_loaded and held + wanted.need_bytes <= rules.allowed_bytes

    if fits(resident):
        return Plan((Load(wanted.expert_id),))
    if fits(staying) and len(staying) < len(resident):
        return Plan()  # what is being drained suffices: its end wakes the loop
    if not (wanted.waiters or wanted.asked):
        return Plan()  # the warm pool never evicts

    victims, ripe_at = _victims(wanted, staying, world, fits)
    if victims:
        return Plan(tuple(Unload(v.expert_id, "evicted") for v in victims))
    return Plan(wake_at=ripe_at)


def _victims(
    wanted: ExpertView,
    staying: Sequence[ExpertView],
    world: World,
    fits: _Fits,
) -> tuple[list[ExpertView], float | None]:
    """The smallest set of victims, in order of worth; or nothing and the time at which trying again makes
    sense.
    """
    now, rules = world.now, world.rules
    removable = [e for e in staying if not e.pinned]
    ripe = [e for e in removable if now - e.loaded_at >= residency_floor_s(e, rules)]
    unripe_until = [
        e.loaded_at + residency_floor_s(e, rules)
        for e in removable
        if e not in ripe and e.state is State.LOADED
    ]

    idle = [e for e in ripe if _is_idle(e)]
    # A guess nobody took up goes first, then the longest idle per second of reload cost; warm ones last.
    idle.sort(key=lambda e: (e.warm, not e.unused, -(now - e.last_used) / max(e.reload_s, 1e-3)))
    chosen = _smallest_prefix(idle, staying, fits)
    if chosen:
        return chosen, None

    waited = now - wanted.oldest_wait if wanted.waiters else 0.0
    if waited >= rules.min_residency_s:
        busy = sorted((e for e in ripe if not _is_idle(e)), key=lambda e: (e.warm, e.loaded_at))
        chosen = _smallest_prefix(idle + busy, staying, fits)
        if chosen:
            return chosen, None
    elif wanted.waiters:
        unripe_until.append(wanted.oldest_wait + rules.min_residency_s)
    return [], min((t for t in unripe_until if t > now), default=None)


def _smallest_prefix(
    candidates: Sequence[ExpertView], staying: Sequence[ExpertView], fits: _Fits
) -> list[ExpertView]:
    chosen: list[ExpertView] = []
    for candidate in candidates:
        chosen.append(candidate)
        if fits([e for e in staying if e not in chosen]):
            break
    else:
        return []
    # A small early candidate may have become superfluous through a large later one.
    for candidate in list(chosen):
        rest = [e for e in chosen if e is not candidate]
        if rest and fits([e for e in staying if e not in rest]):
            chosen = rest
    return chosen
