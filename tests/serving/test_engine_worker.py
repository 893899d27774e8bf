# SPDX-License-Identifier: Apache-2.0
"""vLLM builds our worker in the engine's process, and it makes that process a good neighbour."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.serving.expert_stand import chat, expert_stand

QWEN = "qwen_coder"


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores a signal, by the kernel's word."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigIgn")), 16)
    return bool(mask >> (number - 1) & 1)


def cores_of_threads(pid: int) -> set[tuple[int, ...]]:
    return {tuple(os.sched_getaffinity(int(t.name))) for t in Path(f"/proc/{pid}/task").iterdir()}


async def test_a_real_engine_has_its_name_ignores_ctrl_c_and_moves_to_the_cores_it_is_given(
    demo_models: Path, tmp_path: Path
) -> None:
    async with (
        expert_stand(demo_models, tmp_path, only=[QWEN]) as stand,
        stand.manager.lease(QWEN) as lease,
    ):
        engine = lease.engine
        assert psutil.Process(engine.pid).cmdline()[0] == f"vllm-axion: {QWEN}"
        assert ignores(engine.pid, signal.SIGINT)
        core = min(os.sched_getaffinity(0))
        await engine.set_cores([core])
        assert cores_of_threads(engine.pid) == {(core,)}
        assert (await chat(lease)).status_code == 200
