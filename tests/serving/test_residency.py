# SPDX-License-Identifier: Apache-2.0
"""The decisions of the expert manager, rule by rule, and what holds in every world."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_axion.serving.residency import (
    RESIDENT,
    Action,
    CancelLoad,
    ExpertView,
    Load,
    Plan,
    Rules,
    State,
    Unload,
    World,
    can_ever_fit,
    decide,
    is_protected,
    residency_floor_s,
)

NOW = 1000.0
U, L, UP, D, F = State.UNLOADED, State.LOADING, State.LOADED, State.DRAINING, State.FAILED


def expert(expert_id: str, state: State = U, **fields: Any) -> ExpertView:
    """An expert of 10 bytes; a loaded one has been there, and idle, for long."""
    defaults: dict[str, Any] = {"need_bytes": 10, "loaded_at": 0.0, "last_used": 900.0, "oldest_wait": 990.0}
    if state in RESIDENT:
        defaults["held_bytes"] = 10
    return ExpertView(expert_id, state, **{**defaults, **fields})


def world(*experts: ExpertView, now: float = NOW, other_bytes: int = 0, **rules: Any) -> World:
    """Room for two experts of 10 bytes; nothing is unloaded for being idle."""
    settings = {"allowed_bytes": 20, "max_loaded": 9, "auto_unload_after_s": 0.0, **rules}
    return World(now, experts, Rules(**settings), other_bytes)


def actions(*experts: ExpertView, **options: Any) -> tuple[Action, ...]:
    return decide(world(*experts, **options)).actions


def evict(*ids: str) -> tuple[Unload, ...]:
    return tuple(Unload(i, "evicted") for i in ids)


def test_nothing_to_do_means_nothing_is_done_and_nothing_wakes() -> None:
    assert decide(world(expert("a"), expert("b", UP))) == Plan()


# Rule 1: one load at a time


def test_while_one_loads_no_other_load_begins() -> None:
    assert actions(expert("a", L, waiters=1), expert("b", waiters=1)) == ()
    assert actions(expert("a", L, waiters=1), expert("b", warm=True)) == ()


@pytest.mark.parametrize(
    ("loading", "waiting", "expected"),
    [
        ({}, {"waiters": 1}, (CancelLoad("a"),)),
        ({"waiters": 1}, {"waiters": 1}, ()),
        ({"asked": True}, {"waiters": 1}, ()),
        ({"warm": True}, {"waiters": 1}, ()),
        ({"pinned": True}, {"waiters": 1}, ()),
        ({}, {}, ()),
        ({}, {"asked": True}, ()),
        ({"guess": 0.9}, {"waiters": 1}, (CancelLoad("a"),)),
    ],
    ids=str,
)
def test_a_load_nobody_waits_for_is_cancelled_only_for_one_somebody_waits_for(
    loading: dict[str, Any], waiting: dict[str, Any], expected: tuple[Action, ...]
) -> None:
    assert actions(expert("a", L, **loading), expert("b", **waiting)) == expected


# Rule 2: the idle timer


@pytest.mark.parametrize(
    ("fields", "rules", "unloaded"),
    [
        ({"last_used": 990.0}, {}, True),
        ({"last_used": 990.1}, {}, False),
        ({"last_used": 0.0, "pinned": True}, {}, False),
        ({"last_used": 0.0, "warm": True}, {}, False),
        ({"last_used": 0.0, "in_flight": 1}, {}, False),
        ({"last_used": 0.0, "asked": True}, {}, False),
        ({"last_used": 0.0}, {"auto_unload_after_s": 0.0}, False),
        ({"last_used": 0.0}, {"lazy": False}, False),
    ],
    ids=str,
)
def test_idle_experts_are_unloaded_after_their_time_and_only_those(
    fields: dict[str, Any], rules: dict[str, Any], unloaded: bool
) -> None:
    got = actions(expert("a", UP, **fields), **{"auto_unload_after_s": 10.0, **rules})
    assert got == ((Unload("a", "idle"),) if unloaded else ())


def test_the_loop_wakes_for_the_first_expert_that_will_have_been_idle_long_enough() -> None:
    plan = decide(
        world(expert("a", UP, last_used=995.0), expert("b", UP, last_used=993.0), auto_unload_after_s=10.0)
    )
    assert plan == Plan((), 1003.0)


@pytest.mark.parametrize("state", [U, L, D, F])
def test_only_a_loaded_expert_is_unloaded_for_being_idle(state: State) -> None:
    assert actions(expert("a", state, last_used=0.0, retry_at=2000.0), auto_unload_after_s=1.0) == ()


# Rule 3: who comes first


def test_the_oldest_wait_is_served_first_and_ties_go_by_priority() -> None:
    assert actions(expert("a", waiters=9, oldest_wait=5.0), expert("b", waiters=1, oldest_wait=4.0)) == (
        Load("b"),
    )
    tied = (expert("a", waiters=1, oldest_wait=5.0), expert("b", waiters=1, oldest_wait=5.0, priority=1))
    assert actions(*tied) == (Load("b"),)


def test_requests_come_before_operators_and_operators_before_the_warm_pool() -> None:
    request, wish = expert("r", waiters=1), expert("o", asked=True, priority=1)
    pool, guess = expert("w", warm=True, priority=1), expert("g", guess=0.9, priority=1)
    assert actions(guess, pool, wish, request) == (Load("r"),)
    assert actions(guess, pool, wish) == (Load("o"),)
    assert actions(guess, pool)[0] == Load("w")
    assert actions(guess) == (Load("g"),)


def test_pinned_experts_are_loaded_before_the_rest_of_the_pool() -> None:
    assert actions(expert("a", warm=True, priority=1), expert("b", pinned=True, priority=5))[0] == Load("b")


def test_whoever_is_first_in_the_queue_is_not_overtaken_by_one_that_would_fit() -> None:
    large = expert("large", waiters=1, need_bytes=20, oldest_wait=1.0)
    small = expert("small", waiters=1, need_bytes=1, oldest_wait=2.0)
    assert actions(large, small, expert("busy", UP, pinned=True)) == ()


def test_of_the_warm_pool_whatever_fits_is_loaded_and_nothing_is_evicted_for_it() -> None:
    held = expert("held", UP)
    assert actions(held, expert("big", warm=True, need_bytes=20), expert("fits", warm=True)) == (
        Load("fits"),
    )
    assert actions(held, expert("big", pinned=True, need_bytes=20)) == ()
    assert actions(held, expert("guess", guess=0.9, need_bytes=20)) == ()


def test_an_expert_an_operator_unloaded_is_left_to_requests_and_operators() -> None:
    assert actions(expert("a", warm=True, held_down=True)) == ()
    assert actions(expert("a", pinned=True, held_down=True)) == ()
    assert actions(expert("a", warm=True, held_down=True, waiters=1)) == (Load("a"),)
    assert actions(expert("a", held_down=True, asked=True)) == (Load("a"),)


@pytest.mark.parametrize(
    ("fields", "loads"),
    [
        ({"waiters": 1, "retry_at": 999.0}, True),
        ({"waiters": 1, "retry_at": 1001.0}, False),
        ({"asked": True, "retry_at": 999.0}, True),
        ({"warm": True, "retry_at": 0.0}, False),
        ({"pinned": True, "retry_at": 0.0}, False),
        ({"guess": 0.9, "retry_at": 0.0}, False),
    ],
    ids=str,
)
def test_a_failed_expert_is_tried_again_by_who_asks_and_after_its_back_off(
    fields: dict[str, Any], loads: bool
) -> None:
    assert actions(expert("a", F, **fields)) == ((Load("a"),) if loads else ())


def test_without_lazy_loading_every_expert_is_brought_in_while_there_is_room() -> None:
    assert actions(expert("a"), lazy=False) == (Load("a"),)
    assert actions(expert("a", UP), expert("b"), lazy=False) == (Load("b"),)
    assert actions(expert("a", UP), expert("b", UP), expert("c"), lazy=False) == ()
    assert actions(expert("a", held_down=True), lazy=False) == ()


# Rule 4: room


def test_memory_of_others_counts() -> None:
    assert actions(expert("a", waiters=1), other_bytes=10) == (Load("a"),)
    assert actions(expert("a", waiters=1), other_bytes=11) == ()


def test_a_measurement_above_the_prediction_counts() -> None:
    assert actions(expert("x", UP, held_bytes=11, pinned=True), expert("a", waiters=1)) == ()


@pytest.mark.parametrize("state", sorted(RESIDENT))
def test_max_loaded_counts_everything_that_holds_memory(state: State) -> None:
    assert Load("a") not in actions(
        expert("x", state, waiters=1, pinned=True), expert("a", waiters=1), max_loaded=1
    )


def test_what_is_being_drained_is_waited_for_before_another_is_evicted() -> None:
    draining, idle = expert("d", D), expert("i", UP)
    assert actions(draining, idle, expert("a", waiters=1)) == ()
    assert actions(draining, idle, expert("a", waiters=1, need_bytes=20)) == evict("i")


@pytest.mark.parametrize(
    ("first", "second", "victim"),
    [
        ({"last_used": 100.0}, {"last_used": 900.0}, "x"),
        ({"last_used": 900.0}, {"last_used": 100.0}, "y"),
        # 100 s idle at 1 s of reload weigh more than 500 s idle at 10 s.
        ({"last_used": 500.0, "reload_s": 10.0}, {"last_used": 900.0, "reload_s": 1.0}, "y"),
        ({"last_used": 500.0, "reload_s": 4.0}, {"last_used": 900.0, "reload_s": 1.0}, "x"),
        ({"last_used": 0.0, "warm": True}, {"last_used": 999.0}, "y"),
        ({"last_used": 0.0, "pinned": True}, {"last_used": 999.0}, "y"),
        ({"last_used": 0.0, "in_flight": 1}, {"last_used": 999.0}, "y"),
        ({"last_used": 0.0}, {"last_used": 999.0, "unused": True}, "y"),
        ({"last_used": 0.0, "loaded_at": 999.0}, {"last_used": 999.0}, "y"),
    ],
    ids=str,
)
def test_the_victim_is_the_longest_idle_weighted_by_its_reload(
    first: dict[str, Any], second: dict[str, Any], victim: str
) -> None:
    got = actions(expert("x", UP, **first), expert("y", UP, **second), expert("a", waiters=1))
    assert got == evict(victim)


def test_no_more_experts_leave_than_have_to() -> None:
    small, large = expert("s", UP, held_bytes=2, last_used=1.0), expert("l", UP, held_bytes=18)
    assert actions(small, large, expert("a", waiters=1)) == evict("l")
    assert actions(small, large, expert("a", waiters=1, need_bytes=20)) == evict("s", "l")
    assert actions(small, large, expert("a", waiters=1, need_bytes=2)) == evict("s")


def test_nobody_is_evicted_when_that_would_not_help() -> None:
    assert actions(expert("i", UP), expert("p", UP, pinned=True), expert("a", waiters=1, need_bytes=20)) == ()


def test_room_made_by_the_idle_timer_is_not_made_a_second_time() -> None:
    got = actions(
        expert("old", UP, last_used=0.0),
        expert("new", UP, last_used=999.0),
        expert("a", waiters=1),
        auto_unload_after_s=500.0,
    )
    assert got == (Unload("old", "idle"),)


@pytest.mark.parametrize(
    ("fields", "floor"),
    [({"reload_s": 1.0}, 5.0), ({"reload_s": 60.0}, 10.0), ({"reload_s": 60.0, "unused": True}, 0.0)],
)
def test_an_expert_stays_as_long_as_its_load_is_worth(fields: dict[str, Any], floor: float) -> None:
    view = expert("x", UP, loaded_at=NOW - 4.0, **fields)
    assert residency_floor_s(view, Rules(20, 9)) == floor
    plan = decide(world(view, expert("a", waiters=1, need_bytes=20, oldest_wait=NOW)))
    if floor < 4:
        assert plan.actions == evict("x")
    else:
        assert plan == Plan((), min(NOW - 4.0 + floor, NOW + 10.0))


# Rule 5: nobody starves


@pytest.mark.parametrize(("waited", "drained"), [(9.9, False), (10.0, True)])
def test_a_busy_expert_drains_for_one_that_has_waited_long(waited: float, drained: bool) -> None:
    busy = expert("b", UP, in_flight=3)
    plan = decide(world(busy, expert("a", waiters=1, need_bytes=20, oldest_wait=NOW - waited)))
    assert plan.actions == (evict("b") if drained else ())
    if not drained:
        assert plan.wake_at == pytest.approx(NOW + 0.1)


def test_of_busy_experts_the_one_loaded_longest_drains_and_warm_ones_last() -> None:
    wait = expert("a", waiters=1, oldest_wait=0.0)
    first, second = expert("x", UP, in_flight=1, loaded_at=5.0), expert("y", UP, in_flight=9, loaded_at=3.0)
    assert actions(first, second, wait) == evict("y")
    assert actions(first, replace(second, warm=True), wait) == evict("x")
    assert actions(replace(first, pinned=True), replace(second, pinned=True), wait) == ()


def test_an_operators_wish_never_drains_a_busy_expert() -> None:
    assert actions(expert("b", UP, in_flight=1), expert("a", asked=True, need_bytes=20)) == ()
    assert actions(expert("b", UP), expert("a", asked=True, need_bytes=20)) == evict("b")


# What can never be


@pytest.mark.parametrize(
    ("need", "pinned_bytes", "fits"), [(20, 0, True), (21, 0, False), (10, 10, True), (11, 10, False)]
)
def test_only_what_is_pinned_stands_in_the_way_for_ever(need: int, pinned_bytes: int, fits: bool) -> None:
    wanted = expert("a", need_bytes=need)
    pinned = expert("p", pinned=True, need_bytes=pinned_bytes)
    busy = expert("b", UP, in_flight=1, held_bytes=20)
    assert can_ever_fit(need, wanted, world(wanted, pinned, busy)) is fits


def test_a_pinned_expert_does_not_stand_in_its_own_way() -> None:
    pinned = expert("p", pinned=True, need_bytes=20)
    assert can_ever_fit(20, pinned, world(pinned))
    # Nor in that of another look at it: the manager makes its views anew each time.
    assert can_ever_fit(20, pinned, world(replace(pinned)))


# In every world

_TIMES = st.floats(0.0, NOW, allow_nan=False)


@st.composite
def _views(draw: st.DrawFn, expert_id: str) -> ExpertView:
    state = draw(st.sampled_from(list(State)))
    size = draw(st.integers(0, 12))
    return ExpertView(
        expert_id,
        state,
        priority=draw(st.integers(1, 5)),
        pinned=draw(st.booleans()) and draw(st.booleans()),
        warm=draw(st.booleans()) and draw(st.booleans()),
        guess=draw(st.sampled_from([0.0, 0.0, 0.7])),
        unused=draw(st.booleans()),
        asked=state is not UP and draw(st.booleans()),
        held_down=draw(st.booleans()) and draw(st.booleans()),
        in_flight=draw(st.integers(0, 2)) if state in (UP, D) else 0,
        waiters=draw(st.integers(0, 2)) if state is not UP else 0,
        oldest_wait=draw(_TIMES),
        last_used=draw(_TIMES),
        loaded_at=draw(_TIMES),
        need_bytes=size,
        held_bytes=size + draw(st.integers(0, 2)) if state in RESIDENT else 0,
        reload_s=draw(st.sampled_from([0.0, 0.5, 2.0, 60.0])),
        retry_at=draw(st.floats(0.0, 2 * NOW, allow_nan=False)) if state is F else 0.0,
    )


@st.composite
def _worlds(draw: st.DrawFn) -> World:
    views = [draw(_views(f"e{i}")) for i in range(draw(st.integers(1, 5)))]
    loading = [v for v in views if v.state is L]
    views = [replace(v, state=U, held_bytes=0) if v in loading[1:] else v for v in views]
    rules = Rules(
        allowed_bytes=draw(st.integers(0, 40)),
        max_loaded=draw(st.integers(1, 5)),
        min_residency_s=draw(st.sampled_from([0.0, 5.0, 100.0])),
        auto_unload_after_s=draw(st.sampled_from([0.0, 50.0, 500.0])),
        lazy=draw(st.booleans()),
    )
    return World(NOW, views, rules, draw(st.sampled_from([0, 0, 3])))


def _by_id(picture: World) -> dict[str, ExpertView]:
    return {e.expert_id: e for e in picture.experts}


def _resident(views: Iterable[ExpertView]) -> list[ExpertView]:
    return [v for v in views if v.state in RESIDENT]


@settings(max_examples=500, deadline=None)
@given(_worlds())
def test_whatever_the_world_no_decision_breaks_a_rule(picture: World) -> None:
    plan, views = decide(picture), _by_id(picture)
    resident = _resident(picture.experts)
    loads = [views[a.expert_id] for a in plan.actions if isinstance(a, Load)]
    unloads = [(views[a.expert_id], a.reason) for a in plan.actions if isinstance(a, Unload)]

    assert len(loads) <= 1 and not (loads and any(v.state is L for v in resident)), "one load at a time"
    for view in loads:
        assert view.state is U or (view.state is F and view.retry_at <= NOW)
        held = picture.other_bytes + sum(v.held_bytes for v in resident)
        assert held + view.need_bytes <= picture.rules.allowed_bytes, "memory"
        assert len(resident) < picture.rules.max_loaded, "max_loaded"

    assert len({v.expert_id for v, _ in unloads}) == len(unloads), "nobody is unloaded twice"
    for view, reason in unloads:
        assert view.state is UP and not view.pinned, "pinned ones never leave"
        if reason == "idle":
            assert not view.in_flight and not is_protected(view) and picture.rules.unloads_idle
            assert NOW - view.last_used >= picture.rules.auto_unload_after_s
        else:
            waits = [v for v in picture.experts if v.waiters or v.asked]
            assert waits, "nobody is evicted for a guess or the warm pool"
            assert NOW - view.loaded_at >= residency_floor_s(view, picture.rules), "minimum residency"
            if view.in_flight:
                longest = max(NOW - v.oldest_wait for v in waits if v.waiters)
                assert longest >= picture.rules.min_residency_s, "busy ones only for who waited long"
    assert all(views[a.expert_id].state is L for a in plan.actions if isinstance(a, CancelLoad))
    assert plan.wake_at is None or plan.wake_at > NOW, "a time to wake that has passed is a busy loop"


def _next_picture(picture: World, plan: Plan, leaves: bool) -> World:
    """What the manager makes of a plan: loads end well, drained engines end, requests do if they `leave`."""
    after: list[ExpertView] = []
    cancelled = {a.expert_id for a in plan.actions if isinstance(a, CancelLoad)}
    begun = {a.expert_id for a in plan.actions if isinstance(a, Load)}
    drained = {a.expert_id for a in plan.actions if isinstance(a, Unload)}
    now = picture.now
    for view in picture.experts:
        if view.expert_id in begun:
            view = replace(view, state=L, held_bytes=view.need_bytes)
        elif view.expert_id in cancelled:
            view = replace(view, state=U, held_bytes=0)
        elif view.expert_id in drained:
            view = replace(view, state=D)
        elif view.state is L:
            served = view.waiters
            view = replace(
                view,
                state=UP,
                waiters=0,
                asked=False,
                held_down=False,
                unused=bool(view.guess and not served),
            )
            view = replace(view, in_flight=served, last_used=now, loaded_at=now, guess=0.0)
        elif view.state is D and not view.in_flight:
            view = replace(view, state=U, held_bytes=0, guess=0.0)
        elif view.in_flight and leaves:
            view = replace(view, in_flight=0, last_used=now)
        after.append(view)
    return replace(picture, experts=after)


@settings(max_examples=300, deadline=None)
@given(_worlds())
def test_carried_out_decisions_come_to_rest_and_everybody_who_can_be_is_served(picture: World) -> None:
    loads: dict[str, int] = {}
    for _ in range(200):
        plan = decide(picture)
        assert sum(v.held_bytes for v in _resident(picture.experts)) >= 0
        for action in plan.actions:
            if isinstance(action, Load):
                loads[action.expert_id] = loads.get(action.expert_id, 0) + 1
        following = _next_picture(picture, plan, leaves=True)
        if following == picture:
            if plan.wake_at is None:
                break
            following = replace(picture, now=plan.wake_at)  # sleeps until then, and looks again
        picture = following
    else:
        pytest.fail("the decisions never come to rest")

    # With nobody asking anew, an expert is loaded for who waits, and at most once more to refill the pool.
    assert all(times <= 2 for times in loads.values()), loads
    pinned = [v for v in picture.experts if v.pinned]
    for view in picture.experts:
        if not view.waiters:
            continue
        stuck = view.state is F and view.retry_at > picture.now
        head = min((v for v in picture.experts if v.waiters), key=lambda v: (v.oldest_wait, v.priority))
        kept = [v for v in pinned if v.state is UP and v is not head]
        held = picture.other_bytes + sum(v.held_bytes for v in kept) + head.need_bytes
        blocked = held > picture.rules.allowed_bytes or len(kept) >= picture.rules.max_loaded
        assert stuck or blocked or (head.state is F and head.retry_at > picture.now), (view, picture)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=2, max_size=4),
    busy_s=st.floats(0.5, 5.0),
    residency_s=st.sampled_from([0.0, 5.0, 10.0]),
)
def test_under_unending_load_everybody_is_served_and_memory_is_never_exceeded(
    sizes: list[int], busy_s: float, residency_s: float
) -> None:
    """Every expert is asked again as soon as it has answered; memory is for the largest of them."""
    allowed, step = max(sizes), 0.5
    views = [
        ExpertView(f"e{i}", need_bytes=size, reload_s=1.0, waiters=1, oldest_wait=i * 0.01)
        for i, size in enumerate(sizes)
    ]
    rules = Rules(allowed, 9, residency_s, auto_unload_after_s=0.0)
    ends: dict[str, float] = {}
    served = dict.fromkeys((v.expert_id for v in views), 0)
    switches, now = 0, 1.0
    while now < 400.0:
        plan = decide(World(now, views, rules))
        picture = _next_picture(World(now, views, rules), plan, leaves=False)
        switches += sum(isinstance(a, Load) for a in plan.actions)
        views = []
        for view in picture.experts:
            if view.in_flight and view.expert_id not in ends:
                ends[view.expert_id] = now + busy_s
            if view.in_flight and ends[view.expert_id] <= now:
                del ends[view.expert_id]
                served[view.expert_id] += 1
                again = view.state is UP
                view = replace(view, in_flight=1 if again else 0, last_used=now)
                if not again:
                    view = replace(view, waiters=1, oldest_wait=now)
            views.append(view)
        assert sum(v.held_bytes for v in _resident(views)) <= allowed
        now += step
    assert min(served.values()) >= 2, served
    if residency_s:
        # Each stays at least min(residency, 5 x reload) seconds.
        assert switches <= len(sizes) * 400.0 / 5.0
