# SPDX-License-Identifier: Apache-2.0
"""In a real cgroup that is too small for an expert the server refuses it, and the kernel kills nobody."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.serving.running_server import RunningServer, StartServer

LIMIT = 2 * 2**30
SMALL, LARGE, HUGE = "phi4_fast", "qwen_coder", "mistral_balanced"
"""With 64 MiB, 1 GiB and 16 GiB of KV cache: the server itself takes about 1 GiB of the 2."""


@dataclass(frozen=True)
class Group:
    """A memory cgroup with a limit of `LIMIT` bytes."""

    folder: Path
    events: str
    """The file that counts kills."""

    def oom_kills(self) -> int:
        lines = (self.folder / self.events).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def remove(self) -> None:
        deadline = time.monotonic() + 10
        while self.folder.is_dir() and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # busy until its last process is gone
                self.folder.rmdir()
            time.sleep(0.1)


def _make_group() -> Group:
    """A group below this process's own. Raises OSError where the machine forbids it."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    name = f"vllm-axion-test-{os.getpid()}"
    if "memory" in own:
        folder, limit, events = (
            Path("/sys/fs/cgroup/memory") / own["memory"] / name,
            "limit_in_bytes",
            "oom_control",
        )
    else:
        folder, limit, events = Path("/sys/fs/cgroup") / own[""] / name, "max", "events"
    folder.mkdir()
    group = Group(folder, f"memory.{events}")
    try:
        (folder / f"memory.{limit}").write_text(str(LIMIT))
        group.oom_kills()
    except (OSError, StopIteration) as error:
        group.remove()
        raise OSError(f"the memory controller cannot be used there: {error}") from None
    return group


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    try:
        made = _make_group()
    except (OSError, KeyError) as error:
        pytest.skip(f"this machine lets nobody make a memory cgroup here: {error}")
    yield made
    made.remove()


@pytest.fixture(scope="module")
def limited(group: Group, start_server: StartServer) -> Iterator[RunningServer]:
    """A server that lives in the group from its first instruction on."""
    enter = f'echo $$ > "{group.folder}/cgroup.procs" && exec "$0" serve "{{config}}" "$@"'
    server = start_server(
        command=("/bin/sh", "-c", enter, str(Path(sys.executable).parent / "vllm-axion")),
        only=[SMALL, LARGE, HUGE],
        experts={LARGE: {"kv_cache_memory": "1GiB"}, HUGE: {"kv_cache_memory": "16GiB"}},
        lazy_loading={"warmup_pool_size": 0, "min_residency_s": 0, "auto_unload_after_s": 0},
        limits={"queue_timeout_s": 3},
    )
    yield server
    server.stop()


def _ask(server: RunningServer, expert_id: str) -> tuple[int, str, str | None]:
    body = {"model": expert_id, "messages": [{"role": "user", "content": "Hola"}], "max_tokens": 2}
    with server.http() as client:
        answer = client.post("/v1/chat/completions", json=body)
    refused = answer.json().get("error") or {}
    return answer.status_code, refused.get("code", ""), answer.headers.get("retry-after")


def test_the_limit_of_the_cgroup_is_the_servers_limit(limited: RunningServer) -> None:
    memory = limited.get("/stats")["memory"]
    assert memory["limit_bytes"] == LIMIT
    assert memory["limit_source"].startswith("cgroup")


def test_an_expert_larger_than_the_group_is_refused_at_once(limited: RunningServer, group: Group) -> None:
    began = time.monotonic()
    assert _ask(limited, HUGE)[:2] == (400, "model_too_large")
    assert time.monotonic() - began < 2.5, "it waited for memory that can never be there"
    assert group.oom_kills() == 0


def test_an_expert_that_finds_no_room_is_refused_and_nobody_is_killed(
    limited: RunningServer, group: Group
) -> None:
    status, code, retry_after = _ask(limited, LARGE)
    assert (status, code) == (400, "model_too_large") or (
        (status, code) == (503, "model_unavailable") and retry_after is not None
    )
    assert group.oom_kills() == 0
    assert limited.process.poll() is None
    assert limited.expert(LARGE)["state"] == "unloaded"


def test_one_that_fits_is_served_in_the_same_group(limited: RunningServer, group: Group) -> None:
    assert _ask(limited, SMALL)[0] == 200
    assert group.oom_kills() == 0
