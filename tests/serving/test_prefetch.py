# SPDX-License-Identifier: Apache-2.0
"""Guessing which expert is asked next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllm_axion.serving.prefetch import HALF_LIFE_S, LIKELY, NextExpert

ALL = ["chat", "code", "speak"]


def test_a_pattern_is_learnt() -> None:
    guess = NextExpert()
    for turn in range(10):
        guess.observe("code", 2.0 * turn)
        guess.observe("speak", 2.0 * turn + 1)
    guess.observe("code", 30.0)
    assert [e for e, _ in guess.likely(ALL, 31.0)] == ["speak"]


def test_two_requests_are_no_pattern() -> None:
    guess = NextExpert()
    guess.observe("code", 0.0)
    assert guess.likely(ALL, 1.0) == []


def test_the_expert_in_use_is_never_a_guess() -> None:
    guess = NextExpert()
    for second in range(20):
        guess.observe("code", float(second))
    assert guess.likely(ALL, 21.0) == []


def test_what_the_talk_nearly_was_about_counts() -> None:
    guess = NextExpert()
    for second in range(6):
        guess.observe("chat", float(second), runner_up="speak", chance=0.9)
    assert [e for e, _ in guess.likely(ALL, 6.0)] == ["speak"]


def test_yesterday_weighs_less_than_today() -> None:
    guess = NextExpert()
    for turn in range(20):
        guess.observe("chat", 2.0 * turn)
        guess.observe("code", 2.0 * turn + 1)
    later = 20 * HALF_LIFE_S
    for turn in range(4):
        guess.observe("chat", later + 2 * turn)
        guess.observe("speak", later + 2 * turn + 1)
    guess.observe("chat", later + 10)
    assert guess.likely(ALL, later + 11)[0][0] == "speak"


@given(
    st.lists(st.tuples(st.sampled_from(ALL), st.floats(0, 100), st.sampled_from([None, *ALL])), max_size=50)
)
def test_chances_are_probabilities(events: list[tuple[str, float, str | None]]) -> None:
    guess, now = NextExpert(), 0.0
    for expert_id, passed, runner_up in events:
        now += passed
        guess.observe(expert_id, now, runner_up, 0.5)
    found = guess.likely(ALL, now)
    assert all(LIKELY <= chance <= 1.0 + 1e-9 for _, chance in found)
    assert sum(chance for _, chance in found) <= 1.0 + 1e-9
