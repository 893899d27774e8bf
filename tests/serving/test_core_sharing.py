# SPDX-License-Identifier: Apache-2.0
"""Busy engines keep off each other's cores."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serving.running_server import RunningServer, StartServer
from vllm_axion.serving.core_plan import usable_cores
from vllm_axion.serving.core_sharing import STAYS_BUSY_S, CoreSharing

TWO = ("phi4_fast", "mistral_balanced")

pytestmark = pytest.mark.skipif(len(usable_cores()) < 2, reason="one core cannot be divided")


@pytest.fixture(scope="module")
def divided(start_server: StartServer) -> RunningServer:
    """A server that gives busy engines cores of their own, whatever the size of the machine."""
    server = start_server(cores={"policy": "disjoint"}, only=TWO, lazy_loading={"warmup_pool_size": 2})
    for expert_id in TWO:
        server.wait_for_state(expert_id, "loaded")
    return server


def cores_in_fact(pid: int) -> set[int]:
    """Cores the threads of a process may run on, by the kernel's word."""
    allowed: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        allowed |= os.sched_getaffinity(int(task.name))
    return allowed


def talk(server: RunningServer, expert_id: str, until: threading.Event) -> None:
    stream = server.openai().chat.completions.create(
        model=expert_id,
        messages=[{"role": "user", "content": "Hola"}],
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    for _ in stream:
        if until.is_set():
            stream.close()
            return


@pytest.fixture
def talking(divided: RunningServer) -> Iterator[Callable[[str], None]]:
    """`talking(expert_id)` keeps an expert busy until the test ends."""
    enough = threading.Event()
    threads: list[threading.Thread] = []

    def start(expert_id: str) -> None:
        def keep_talking() -> None:
            while not enough.is_set():
                talk(divided, expert_id, enough)

        threads.append(threading.Thread(target=keep_talking))
        threads[-1].start()

    yield start
    enough.set()
    for thread in threads:
        thread.join(60)


def test_one_busy_engine_has_every_core(divided: RunningServer, talking: Callable[[str], None]) -> None:
    talking("phi4_fast")
    divided.wait_until(lambda: divided.expert("phi4_fast")["in_flight"] == 1)
    divided.wait_until(
        lambda: (
            cores_in_fact(divided.expert("phi4_fast")["pid"]) >= set(divided.expert("phi4_fast")["cores"])
        ),
        what="the kernel agrees with /stats",
    )
    assert divided.expert("phi4_fast")["cores"] == divided.get("/stats")["cores"]["for_engines"]


def test_two_busy_engines_never_meet_on_a_core(
    divided: RunningServer, talking: Callable[[str], None]
) -> None:
    for expert_id in TWO:
        talking(expert_id)

    def apart() -> bool:
        told = [divided.expert(expert_id) for expert_id in TWO]
        in_fact = [cores_in_fact(expert["pid"]) for expert in told]
        as_told = [set(expert["cores"]) == cores for expert, cores in zip(told, in_fact, strict=True)]
        return not in_fact[0] & in_fact[1] and all(as_told)

    divided.wait_until(apart, what="disjoint cores, by the kernel's word")


def test_an_engine_alone_again_gets_the_cores_back(
    divided: RunningServer, talking: Callable[[str], None]
) -> None:
    everything = set(divided.get("/stats")["cores"]["for_engines"])
    talking("mistral_balanced")
    divided.wait_until(
        lambda: cores_in_fact(divided.expert("mistral_balanced")["pid"]) == everything, what="every core"
    )


def test_idle_engines_do_not_spin(divided: RunningServer) -> None:
    pids = [divided.expert(expert_id)["pid"] for expert_id in TWO]
    divided.wait_until(lambda: all(divided.expert(e)["in_flight"] == 0 for e in TWO))
    busy = threading.Event()

    def cpu_seconds() -> float:
        fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
        return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")

    busy.wait(1.0)
    before = cpu_seconds()
    busy.wait(5.0)
    # A spinning OpenMP team of one engine alone would use 5 s or more.
    assert cpu_seconds() - before < 1.0


def engine_at_rest(last_used: float) -> Any:
    """All that is asked of a slot here."""
    return SimpleNamespace(engine=object(), in_flight=0, last_used=last_used)


def test_the_manager_looks_again_when_the_first_engine_stops_counting_as_busy() -> None:
    now = time.monotonic()
    sharing = CoreSharing("disjoint", (0, 1))
    slots = [engine_at_rest(now), engine_at_rest(now - 1), engine_at_rest(now - 100)]
    assert sharing.next_look(slots) == now - 1 + STAYS_BUSY_S
    assert sharing.next_look(slots[2:]) is None
    assert CoreSharing("shared", (0, 1)).next_look(slots) is None, "nobody has cores to give back"
