# SPDX-License-Identifier: Apache-2.0
"""Who gets which cores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_axion.serving.core_plan import engine_cores, plan_cores

EIGHT = tuple(range(8))


def test_a_small_machine_is_shared_by_all() -> None:
    plan = plan_cores("auto", (0, 1), ["a", "b"], ["a", "b"])
    assert plan.policy == "shared"
    assert plan.cores == {"a": (0, 1), "b": (0, 1)}


def test_one_busy_engine_has_every_core() -> None:
    plan = plan_cores("auto", EIGHT, ["a", "b", "c"], ["b"])
    assert plan.cores["b"] == EIGHT


def test_two_busy_engines_never_meet_on_a_core() -> None:
    plan = plan_cores("auto", EIGHT, ["a", "b", "c"], ["c", "a"])
    assert plan.policy == "disjoint"
    assert plan.cores["c"] == (0, 1, 2, 3)
    assert plan.cores["a"] == (4, 5, 6, 7)


def test_an_odd_core_goes_to_the_engine_busy_longest() -> None:
    plan = plan_cores("disjoint", range(7), ["a", "b"], ["b", "a"])
    assert [len(plan.cores[e]) for e in ("b", "a")] == [4, 3]


def test_more_busy_engines_than_cores_share_them() -> None:
    plan = plan_cores("disjoint", (0, 1), ["a", "b", "c"], ["a", "b", "c"])
    assert plan.policy == "shared"


def test_shared_stays_shared_on_any_machine() -> None:
    assert plan_cores("shared", range(72), ["a", "b"], ["a", "b"]).policy == "shared"


def test_a_large_machine_leaves_a_core_to_the_api_process() -> None:
    assert engine_cores(range(16)) == tuple(range(1, 16))
    assert engine_cores((3, 2)) == (2, 3)


@given(st.integers(1, 96), st.integers(1, 12), st.integers(0, 12))
def test_a_disjoint_plan_uses_every_core_exactly_once(cores: int, engines: int, busy: int) -> None:
    names = [f"e{i}" for i in range(engines)]
    working = names[:busy]
    plan = plan_cores("disjoint", range(cores), names, working)
    assert set(plan.cores) == set(names)
    if plan.policy == "disjoint" and working:
        used = [core for name in working for core in plan.cores[name]]
        assert sorted(used) == list(range(cores))
        sizes = [len(plan.cores[name]) for name in working]
        assert max(sizes) - min(sizes) <= 1
    assert all(plan.cores[name] for name in names)
