# SPDX-License-Identifier: Apache-2.0
"""What the manager remembers of an expert: back-off, public status, the view decisions get."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from vllm_axion.serving.config import ExpertConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.expert_engine import ExpertEngine
from vllm_axion.serving.expert_slot import ExpertSlot
from vllm_axion.serving.residency import State


def make_slot(**fields: Any) -> ExpertSlot:
    config = ExpertConfig(expert_id="one", model_path="org/model", priority=2, pinned=True)
    return ExpertSlot(config, ExpertSeries("one"), False, **fields)


def test_the_wait_after_failed_loads_doubles_up_to_a_minute() -> None:
    slot, waits = make_slot(), []
    for _ in range(9):
        slot.note_failure("no", 100.0, was_running=False)
        waits.append(slot.retry_at - 100.0)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_an_engine_that_dies_once_may_come_back_at_once_but_not_again_and_again() -> None:
    slot, waits = make_slot(loaded_at=100.0), []
    for _ in range(4):
        slot.note_failure("died", 110.0, was_running=True)
        waits.append(slot.retry_at - 110.0)
    assert waits == [0, 2, 4, 8]


def test_an_engine_that_ran_well_for_long_starts_with_a_clean_record() -> None:
    slot = make_slot(loaded_at=100.0, failures=6)
    slot.note_failure("died", 100.0 + 61.0, was_running=True)
    assert (slot.failures, slot.retry_at) == (1, 161.0)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, {"value": "unloaded"}),
        ({"state": State.LOADED}, {"value": "loaded"}),
        ({"state": State.DRAINING}, {"value": "loaded"}),
        (
            {"state": State.LOADING, "stage": "weights", "progress": 0.5},
            {"value": "loading", "progress": {"stage": "weights", "value": 0.5}},
        ),
        (
            {"state": State.FAILED, "error": "one: why"},
            {"value": "failed", "failed": True, "error": "one: why"},
        ),
        ({"error": "of old"}, {"value": "unloaded"}),
    ],
    ids=str,
)
def test_clients_see_four_states(fields: dict[str, Any], status: dict[str, Any]) -> None:
    assert make_slot(**fields).public_status() == status


def test_decisions_see_the_larger_of_prediction_and_measurement_and_the_mean_of_the_loads() -> None:
    slot = make_slot(measured_bytes=5, loads=2, load_s_sum=3.0)
    view = slot.view()
    assert (view.need_bytes, view.held_bytes, view.reload_s) == (0, 5, 1.5)
    assert (view.expert_id, view.priority, view.pinned, view.warm) == ("one", 2, True, False)
    assert make_slot().view().reload_s > 0, "a guess before the first load"


async def test_decisions_see_the_oldest_wait() -> None:
    loop = asyncio.get_running_loop()
    slot = make_slot(waiters={loop.create_future(): 7.0, loop.create_future(): 5.0})
    assert (slot.view().waiters, slot.view().oldest_wait) == (2, 5.0)


def test_an_expert_whose_dead_engine_is_not_cleared_away_cannot_be_loaded_yet() -> None:
    slot = make_slot(state=State.FAILED, engine=cast(ExpertEngine, object()))
    assert slot.view().state is State.DRAINING
    assert slot.public_status()["value"] == "failed"
    slot.engine = None
    assert slot.view().state is State.FAILED
