# SPDX-License-Identifier: Apache-2.0
"""One load and how it may end."""

from __future__ import annotations

import time
from pathlib import Path

from tests.serving.expert_stand import Stand, engine_processes, expert_stand
from vllm_axion.serving.expert_loading import Loaded, NotLoaded, load_expert
from vllm_axion.serving.expert_slot import ExpertSlot

QWEN = "qwen_coder"


async def load(
    stand: Stand, limit_s: float = 60.0, seen: list[str | None] | None = None
) -> Loaded | NotLoaded:
    def publish(slot: ExpertSlot) -> None:
        if seen is not None:
            seen.append(slot.stage)

    return await load_expert(stand.slot(QWEN), stand.factory, stand.config.base_dir, limit_s, publish)


async def test_a_load_tells_its_stages_and_ends_with_an_engine(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        seen: list[str | None] = []
        outcome = await load(stand, seen=seen)
        assert isinstance(outcome, Loaded) and outcome.seconds > 0
        assert list(dict.fromkeys(seen)) == ["config", "weights", "app"]
        assert [p.pid for p in engine_processes()] == [outcome.engine.pid]
        await outcome.engine.stop()


async def test_a_load_beyond_its_time_is_ended_and_says_so(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        began = time.monotonic()
        outcome = await load(stand, limit_s=0.1)
        assert isinstance(outcome, NotLoaded) and outcome.outcome == "failed"
        assert "did not load within" in outcome.error and time.monotonic() - began < 20
        assert engine_processes() == []


async def test_a_load_that_was_cancelled_before_there_was_an_engine_starts_none(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, only=[QWEN]) as stand:
        stand.slot(QWEN).cancelling = True
        seen: list[str | None] = []
        outcome = await load(stand, seen=seen)
        assert isinstance(outcome, NotLoaded) and (outcome.outcome, outcome.error) == ("cancelled", "")
        assert seen == [] and engine_processes() == []
