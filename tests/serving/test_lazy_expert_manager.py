# SPDX-License-Identifier: Apache-2.0
"""The expert manager's promises, each with real engines of the demo models."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.serving.expert_stand import PATIENCE_S, Stand, chat, engine_processes, expert_stand
from vllm_axion.serving.errors import (
    CannotLoadNowError,
    ModelNotFoundError,
    NeverFitsError,
    QueueFullError,
    ServingError,
    ShuttingDownError,
)
from vllm_axion.serving.machine_memory import MachineMemory
from vllm_axion.serving.residency import State

PHI, QWEN, MISTRAL = "phi4_fast", "qwen_coder", "mistral_balanced"


def machine(limit: int) -> Callable[[], MachineMemory]:
    """A machine of that size on which nothing else runs."""
    return lambda: MachineMemory(limit, 0, "RAM")


async def outcome(stand: Stand, expert_id: str) -> ServingError:
    """The error a request for the expert ends with."""
    with pytest.raises(ServingError) as caught:
        await asyncio.wait_for(stand.manager.acquire(expert_id), PATIENCE_S)
    return caught.value


async def request(stand: Stand, expert_id: str, **options: Any) -> int:
    """HTTP status of one chat."""
    async with stand.manager.lease(expert_id) as lease:
        return (await chat(lease, **options)).status_code


def nothing_left(stand: Stand, expert_id: str) -> bool:
    slot = stand.slot(expert_id)
    return slot.in_flight == 0 and not slot.waiters


# Loading


async def test_two_hundred_first_requests_load_once(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:

        async def one_request() -> int:
            async with stand.manager.lease(QWEN) as lease:
                return lease.engine.pid

        pids = await asyncio.gather(*(one_request() for _ in range(200)))
        slot = stand.slot(QWEN)
        assert pids == [stand.engine(QWEN).pid] * 200
        assert (slot.loads, slot.requests, slot.in_flight, len(slot.waiters)) == (1, 200, 0, 0)
        assert [p.pid for p in engine_processes()] == [stand.engine(QWEN).pid]
        assert stand.metric('vllm_axion:expert_loads_total{expert="qwen_coder",outcome="loaded"}') == 1
        assert await request(stand, QWEN) == 200


async def test_a_waiter_that_leaves_is_forgotten(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        stays = asyncio.create_task(stand.load(QWEN))
        leaves = [asyncio.create_task(stand.load(QWEN)) for _ in range(5)]
        await stand.until_state(QWEN, State.LOADING)
        assert len(stand.slot(QWEN).waiters) == 6
        for task in leaves:
            task.cancel()
        await asyncio.gather(*leaves, return_exceptions=True)
        assert len(stand.slot(QWEN).waiters) == 1
        await stays
        assert stand.slot(QWEN).requests == 1 and nothing_left(stand, QWEN)


async def test_a_waiter_cancelled_in_the_moment_it_is_served_gives_its_lease_back(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:

        async def take_and_cancel_the_other() -> None:
            async with stand.manager.lease(QWEN):  # served in the same step as the other, and resumed first
                other.cancel()

        first = asyncio.create_task(take_and_cancel_the_other())
        await asyncio.sleep(0)
        other = asyncio.create_task(stand.manager.acquire(QWEN))
        await first
        with pytest.raises(asyncio.CancelledError):
            await other
        assert stand.slot(QWEN).requests == 2 and nothing_left(stand, QWEN)


async def test_a_load_nobody_waits_for_makes_way_for_one_somebody_waits_for(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        left = asyncio.create_task(stand.load(QWEN))
        await stand.until_state(QWEN, State.LOADING)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        await stand.load(PHI)
        assert stand.state(QWEN) is State.UNLOADED and stand.slot(QWEN).loads == 0
        assert [p.pid for p in engine_processes()] == [stand.engine(PHI).pid]
        assert stand.metric('vllm_axion:expert_loads_total{expert="qwen_coder",outcome="cancelled"}') == 1


async def test_a_full_queue_is_answered_429_with_a_time_to_retry(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, limits={"max_queue": 3}) as stand:
        waiting = [asyncio.create_task(stand.load(e)) for e in (QWEN, QWEN, PHI)]
        await stand.until(lambda: len(stand.slot(QWEN).waiters) == 2, "two waiters")
        error = await outcome(stand, MISTRAL)
        assert isinstance(error, QueueFullError) and error.status == 429
        assert int(error.headers()["retry-after"]) >= 1
        with pytest.raises(QueueFullError):
            stand.manager.request_load(MISTRAL)
        await asyncio.gather(*waiting)
        await stand.load(MISTRAL)


async def test_an_unknown_expert_is_named_and_those_there_are_listed(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, only=[PHI, QWEN]) as stand:
        error = await outcome(stand, "gpt-4")
        assert isinstance(error, ModelNotFoundError) and error.param == "model"
        assert "'gpt-4'" in error.message and PHI in error.message and QWEN in error.message


# Leaving


async def test_an_idle_expert_is_unloaded_and_its_process_and_memory_are_gone(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, lazy_loading={"auto_unload_after_s": 0.5}) as stand:
        engine = await stand.load(QWEN)
        await stand.until(lambda: stand.slot(QWEN).measured_bytes > 0, "a measurement")
        before = stand.manager.memory()["reserved_bytes"]
        assert before >= stand.slot(QWEN).need_bytes > 0
        await stand.until_state(QWEN, State.UNLOADED)
        assert not psutil.pid_exists(engine.pid) and engine_processes() == []
        assert stand.manager.memory()["reserved_bytes"] == 0 and stand.slot(QWEN).measured_bytes == 0
        assert stand.metric('vllm_axion:expert_unloads_total{expert="qwen_coder",reason="idle"}') == 1
        assert stand.metric('vllm_axion:expert_memory_bytes{expert="qwen_coder",kind="process"}') == 0


async def test_a_busy_expert_is_not_idle_however_long_its_request_takes(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, lazy_loading={"auto_unload_after_s": 0.2}) as stand:
        async with stand.manager.lease(QWEN) as lease:
            await asyncio.sleep(1)
            assert stand.state(QWEN) is State.LOADED
            assert (await chat(lease)).status_code == 200
        await stand.until_state(QWEN, State.UNLOADED)


async def test_an_evicted_expert_makes_room_and_a_pinned_one_never_does(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(
        demo_models, tmp_path, experts={PHI: {"pinned": True}}, lazy_loading={"max_loaded_experts": 2}
    ) as stand:
        await stand.until_state(PHI, State.LOADED)
        pinned = stand.engine(PHI)
        first = await stand.load(QWEN)
        second = await stand.load(MISTRAL)
        assert stand.state(QWEN) is State.UNLOADED and not psutil.pid_exists(first.pid)
        assert {p.pid for p in engine_processes()} == {pinned.pid, second.pid}
        await stand.load(QWEN)
        assert stand.engine(PHI) is pinned and stand.slot(PHI).loads == 1
        assert (
            stand.metric('vllm_axion:expert_unloads_total{expert="mistral_balanced",reason="evicted"}') == 1
        )


async def test_a_busy_expert_is_never_cut_off_to_make_room(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(
        demo_models, tmp_path, lazy_loading={"max_loaded_experts": 1, "min_residency_s": 0.3}
    ) as stand:
        async with stand.manager.lease(QWEN) as lease:
            other = asyncio.create_task(stand.load(PHI))
            await stand.until_state(QWEN, State.DRAINING)
            late = asyncio.create_task(stand.load(QWEN))  # takes its turn after the one who waits longer
            await asyncio.sleep(0.3)
            assert stand.state(QWEN) is State.DRAINING and not other.done() and not late.done()
            assert (await chat(lease)).status_code == 200
        await asyncio.gather(other, late)
        assert stand.slot(QWEN).loads == 2 and stand.slot(PHI).loads == 1


async def test_whoever_waits_too_long_for_busy_experts_is_told_so(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(
        demo_models,
        tmp_path,
        lazy_loading={"max_loaded_experts": 1, "min_residency_s": 5},
        limits={"queue_timeout_s": 0.5},
    ) as stand:
        async with stand.manager.lease(QWEN):
            error = await outcome(stand, PHI)
            assert isinstance(error, CannotLoadNowError) and "busy" in error.message
            assert error.retry_after_s and nothing_left(stand, PHI)
        assert stand.state(QWEN) is State.LOADED


async def test_two_experts_that_fit_one_at_a_time_take_turns_without_thrash(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(
        demo_models, tmp_path, lazy_loading={"max_loaded_experts": 1, "min_residency_s": 1.0}
    ) as stand:
        ends = time.monotonic() + 9
        served = {QWEN: 0, PHI: 0}

        async def keep_asking(expert_id: str) -> None:
            while time.monotonic() < ends:
                assert await request(stand, expert_id, max_tokens=1) == 200
                served[expert_id] += 1

        await asyncio.gather(*(keep_asking(e) for e in (QWEN, QWEN, PHI, PHI)))
        loads = [stand.slot(e).loads for e in (QWEN, PHI)]
        assert min(served.values()) >= 10, served
        assert min(loads) >= 2 and abs(loads[0] - loads[1]) <= 1, loads
        assert sum(loads) <= 10, f"an expert stays at least a second: {loads} loads in 9 s is thrash"


# Memory


async def test_an_expert_that_can_never_fit_is_refused_at_once(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, read_memory=machine(64 * 1024**2)) as stand:
        error = await outcome(stand, QWEN)
        assert isinstance(error, NeverFitsError) and error.status == 400
        assert "needs" in error.message and "51" in error.message  # 0.8 of 64 MiB
        with pytest.raises(NeverFitsError):
            stand.manager.request_load(QWEN)
        assert stand.state(QWEN) is State.UNLOADED and engine_processes() == []


async def test_a_limit_lowered_while_the_server_runs_holds_from_then_on(
    demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_axion.serving.memory_watch._EVERY_S", 0.05)
    limit = 64 * 1024**3
    async with expert_stand(
        demo_models, tmp_path, read_memory=lambda: MachineMemory(limit, 0, "RAM")
    ) as stand:
        before = stand.manager.memory()["allowed_bytes"]
        limit = 64 * 1024**2
        await stand.until(lambda: stand.manager.memory()["allowed_bytes"] < before / 1000, "the new limit")
        assert isinstance(await outcome(stand, QWEN), NeverFitsError)
        assert engine_processes() == []


async def test_memory_for_one_is_never_given_to_two(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path) as probe:
        needs = [probe.slot(e).need_bytes for e in (QWEN, PHI)]
        await probe.load(QWEN)
        await probe.until(lambda: probe.slot(QWEN).measured_bytes > 0, "a measurement")
        needs.append(probe.slot(QWEN).measured_bytes)
    limit = int((max(needs) + min(needs) / 2) / 0.8)
    async with expert_stand(demo_models, tmp_path, read_memory=machine(limit)) as stand:
        seen = set()

        async def look() -> None:
            while True:
                seen.add(len(engine_processes()))
                await asyncio.sleep(0.02)

        looking = asyncio.create_task(look())
        for expert_id in (QWEN, PHI, QWEN):
            assert await request(stand, expert_id) == 200
        looking.cancel()
        assert max(seen) == 1 and stand.slot(QWEN).loads == 2


# Failures


async def test_a_missing_checkpoint_is_one_clear_line_without_a_path_and_backs_off(
    demo_models: Path, tmp_path: Path
) -> None:
    missing = str(tmp_path / "secret-place" / "nothing-here")
    async with expert_stand(demo_models, tmp_path, experts={QWEN: {"model_path": missing}}) as stand:
        error = await outcome(stand, QWEN)
        assert isinstance(error, CannotLoadNowError) and error.status == 503
        assert "qwen_coder" in error.message and "nothing-here" in error.message
        assert "secret-place" not in error.message and "\n" not in error.message
        assert stand.state(QWEN) is State.FAILED
        again = await outcome(stand, QWEN)
        assert again.retry_after_s and again.retry_after_s <= 1 and "next try" in again.message
        assert stand.slot(QWEN).failures == 1, "a request within the back-off starts no load"
        await asyncio.sleep(1.05)
        shutil.copytree(demo_models / QWEN, missing)
        assert await request(stand, QWEN) == 200, "what was repaired loads without a restart"


@pytest.mark.parametrize("fault", ["truncated", "garbage", "config"])
async def test_a_corrupt_checkpoint_fails_its_own_load_only(
    demo_models: Path, tmp_path: Path, fault: str
) -> None:
    broken = tmp_path / "secret-place" / "broken"
    shutil.copytree(demo_models / QWEN, broken)
    weights = next(broken.glob("*.safetensors"))
    if fault == "truncated":
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size // 2)
    elif fault == "garbage":
        weights.write_bytes(b"\xff" * 4096)
    else:
        (broken / "config.json").write_text('{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"')
    async with expert_stand(demo_models, tmp_path, experts={QWEN: {"model_path": str(broken)}}) as stand:
        error = await outcome(stand, QWEN)
        assert isinstance(error, CannotLoadNowError)
        assert "secret-place" not in error.message and "\n" not in error.message
        assert stand.slot(QWEN).public_status() == {
            "value": "failed",
            "failed": True,
            "error": error.message,
        }
        assert engine_processes() == []
        assert await request(stand, PHI) == 200


async def test_what_vllm_refuses_is_told_in_one_line_without_a_path(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, experts={QWEN: {"max_model_len": 10_000_000}}) as stand:
        error = await outcome(stand, QWEN)
        assert isinstance(error, ServingError) and "qwen_coder" in error.message
        assert "\n" not in error.message and str(demo_models) not in error.message
        assert engine_processes() == []


async def test_a_killed_idle_engine_is_failed_and_the_next_request_reloads_it(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        first = await stand.load(QWEN)
        os.kill(first.pid, signal.SIGKILL)
        await stand.until_state(QWEN, State.FAILED)
        # At once, while the first engine is still being cleared away.
        assert await asyncio.gather(*(request(stand, QWEN) for _ in range(3))) == [200] * 3
        assert stand.slot(QWEN).loads == 2 and stand.engine(QWEN) is not first
        assert [p.pid for p in engine_processes()] == [stand.engine(QWEN).pid]
        await asyncio.sleep(1)
        assert stand.state(QWEN) is State.LOADED and await request(stand, QWEN) == 200


async def test_an_engine_killed_again_and_again_is_reloaded_more_and_more_slowly(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        for _ in range(2):
            os.kill((await stand.load(QWEN)).pid, signal.SIGKILL)
            await stand.until_state(QWEN, State.FAILED)
        error = await outcome(stand, QWEN)
        assert error.retry_after_s and 1 < error.retry_after_s <= 2
        assert "ended unexpectedly" in error.message


async def test_an_engine_killed_during_a_request_ends_it_and_nothing_is_in_flight(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        engine = await stand.load(QWEN)
        asking = asyncio.create_task(request(stand, QWEN, max_tokens=900, ignore_eos=True))
        await stand.until(lambda: stand.slot(QWEN).in_flight == 1, "the request")
        await asyncio.sleep(0.3)
        assert not asking.done()
        os.kill(engine.pid, signal.SIGKILL)
        assert await asyncio.wait_for(asking, 10) >= 500
        assert nothing_left(stand, QWEN)
        assert await request(stand, QWEN) == 200


async def test_an_engine_killed_while_it_drains_neither_blocks_nor_loses_the_next_load(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        engine = await stand.load(QWEN)
        asking = asyncio.create_task(request(stand, QWEN, max_tokens=900, ignore_eos=True))
        await stand.until(lambda: stand.slot(QWEN).in_flight == 1, "the request")
        await asyncio.sleep(0.3)
        stand.manager.request_unload(QWEN)
        await stand.until_state(QWEN, State.DRAINING)
        os.kill(engine.pid, signal.SIGKILL)
        assert await asyncio.wait_for(asking, 10) >= 500
        await stand.until_state(QWEN, State.UNLOADED)
        assert await request(stand, QWEN) == 200


async def test_a_killed_engine_template_takes_its_engines_along_and_loads_go_on(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        engine = await stand.load(QWEN)
        template = psutil.Process(engine.pid).ppid()
        os.kill(template, signal.SIGKILL)
        await stand.until_state(QWEN, State.FAILED)
        assert await request(stand, QWEN) == 200
        reborn = psutil.Process(psutil.Process(stand.engine(QWEN).pid).ppid())
        assert reborn.pid != template
        environment = reborn.environ()
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE" and "libgomp" in environment["LD_PRELOAD"]
    # The kernel ends it with the thread that started it, which must not be the loader's: that has just ended.
    await asyncio.sleep(1.0)
    assert reborn.is_running() and reborn.status() != psutil.STATUS_ZOMBIE


async def test_a_load_that_takes_too_long_is_ended(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, limits={"load_timeout_s": 0.2}) as stand:
        error = await outcome(stand, QWEN)
        assert isinstance(error, CannotLoadNowError) and "did not load within" in error.message
        assert stand.state(QWEN) is State.FAILED and engine_processes() == []


# Operators


async def test_what_an_operator_unloads_stays_unloaded_until_somebody_asks(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path, lazy_loading={"warmup_pool_size": 1}) as stand:
        await stand.until_state(PHI, State.LOADED)
        stand.manager.request_unload(PHI)
        await stand.until_state(PHI, State.UNLOADED)
        await stand.load(QWEN)  # the loop has decided several times since
        assert stand.state(PHI) is State.UNLOADED and stand.slot(PHI).loads == 1
        assert await request(stand, PHI) == 200
        stand.manager.request_unload(PHI)
        await stand.until_state(PHI, State.UNLOADED)
        stand.manager.request_load(PHI)
        await stand.until_state(PHI, State.LOADED)


async def test_an_unload_waits_for_what_is_in_flight_and_new_requests_for_the_reload(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        async with stand.manager.lease(QWEN) as lease:
            stand.manager.request_unload(QWEN)
            await stand.until_state(QWEN, State.DRAINING)
            assert stand.slot(QWEN).public_status() == {"value": "loaded"}
            late = asyncio.create_task(request(stand, QWEN))
            await asyncio.sleep(0.3)
            assert (await chat(lease)).status_code == 200
            assert not late.done() and psutil.pid_exists(lease.engine.pid)
        assert await late == 200
        assert stand.slot(QWEN).loads == 2


async def test_an_unload_waits_no_longer_than_the_drain_timeout(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path, lazy_loading={"drain_timeout_s": 0.5}) as stand:
        await stand.load(QWEN)
        asking = asyncio.create_task(request(stand, QWEN, max_tokens=900, ignore_eos=True))
        await stand.until(lambda: stand.slot(QWEN).in_flight == 1, "the request")
        stand.manager.request_unload(QWEN)
        await stand.until_state(QWEN, State.UNLOADED)
        (status,) = await asyncio.wait_for(asyncio.gather(asking, return_exceptions=True), 10)
        assert isinstance(status, BaseException) or status >= 500
        assert nothing_left(stand, QWEN)


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.1, 0.3, 0.6])
async def test_an_unload_during_a_load_cancels_it_at_every_stage(
    demo_models: Path, tmp_path: Path, after_s: float
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        waiting = asyncio.create_task(outcome(stand, QWEN))
        await stand.until_state(QWEN, State.LOADING)
        await asyncio.sleep(after_s)
        assert stand.state(QWEN) is State.LOADING
        stand.manager.request_unload(QWEN)
        error = await asyncio.wait_for(waiting, 5)
        assert isinstance(error, CannotLoadNowError) and "cancelled" in error.message
        await stand.until_state(QWEN, State.UNLOADED)
        assert engine_processes() == [] and stand.slot(QWEN).failures == 0
        assert await request(stand, QWEN) == 200, "the next request loads it as if nothing had been"


async def test_an_unload_told_in_the_moment_the_load_ends_is_not_lost(
    demo_models: Path, tmp_path: Path
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        stand.manager.request_load(QWEN)
        await stand.until_state(QWEN, State.LOADING)
        await stand.until(lambda: stand.slot(QWEN).stage == "app", "the last stage")
        await stand.until(lambda: stand.factory.starting_pid() is None, "the end of the start")
        stand.manager.request_unload(QWEN)
        await stand.until(lambda: stand.state(QWEN) is State.UNLOADED, "unloaded")
        await asyncio.sleep(0.3)
        assert stand.state(QWEN) is State.UNLOADED and engine_processes() == []


async def test_a_load_wished_after_its_cancellation_happens(demo_models: Path, tmp_path: Path) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        stand.manager.request_load(QWEN)
        await stand.until_state(QWEN, State.LOADING)
        stand.manager.request_unload(QWEN)
        await stand.until(lambda: stand.slot(QWEN).cancelling or stand.state(QWEN) is State.UNLOADED, "")
        stand.manager.request_load(QWEN)
        await stand.until_state(QWEN, State.LOADED)


# The end


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.4])
async def test_stopping_during_a_load_refuses_who_waits_and_leaves_nothing(
    demo_models: Path, tmp_path: Path, after_s: float
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:
        waiting = asyncio.create_task(outcome(stand, QWEN))
        await stand.until_state(QWEN, State.LOADING)
        await asyncio.sleep(after_s)
    assert isinstance(await waiting, ShuttingDownError)  # the stand itself looks for what is left


async def test_ten_loads_and_unloads_leave_no_descriptor_thread_or_process(
    demo_models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with expert_stand(demo_models, tmp_path) as stand:

        async def cycle() -> None:
            assert await request(stand, QWEN) == 200
            stand.manager.request_unload(QWEN)
            await stand.until_state(QWEN, State.UNLOADED)

        def held() -> tuple[int, int]:
            assert [r for r in caplog.records if r.levelno >= logging.ERROR] == [], "a wanted end is no error"
            caplog.clear()  # pytest keeps records, and they what they are about
            gc.collect()  # what waits for the collector is not lost
            pool = sum(thread.name.startswith("asyncio_") for thread in threading.enumerate())
            descriptors, threads = (
                len(list(Path(f"/proc/self/{kind}").iterdir())) for kind in ("fd", "task")
            )
            return descriptors, threads - pool

        for _ in range(2):  # pools and caches that are made once
            await cycle()
        before = held()
        for _ in range(10):
            await cycle()
        after = held()
        assert after[0] <= before[0] and after[1] <= before[1], f"(descriptors, threads) {before} -> {after}"
        assert engine_processes() == []
