# SPDX-License-Identifier: Apache-2.0
"""The expert manager with real engines of the demo models, in the test's own process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client import generate_latest

from tests.serving.running_server import demo_config
from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.engine_metrics import ExpertSeries
from vllm_axion.serving.engine_options import serve_parser
from vllm_axion.serving.engine_process import start_fork_server
from vllm_axion.serving.expert_engine import EngineFactory, ExpertEngine, import_architecture
from vllm_axion.serving.expert_slot import ExpertSlot, Lease
from vllm_axion.serving.expert_spec import architectures
from vllm_axion.serving.lazy_expert_manager import LazyExpertManager
from vllm_axion.serving.machine_memory import MachineMemory, read_machine_memory
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.residency import State
from vllm_axion.serving.run_directory import run_directory

PATIENCE_S = 60.0


@dataclass
class Stand:
    """A started manager, its engines' factory and ways to look at both."""

    manager: LazyExpertManager
    factory: EngineFactory
    config: MultiModelConfig
    metrics: ServerMetrics
    folder: Path

    def slot(self, expert_id: str) -> ExpertSlot:
        return self.manager.slot(expert_id)

    def state(self, expert_id: str) -> State:
        return self.manager.slot(expert_id).state

    def engine(self, expert_id: str) -> ExpertEngine:
        engine = self.manager.slot(expert_id).engine
        assert engine is not None, f"{expert_id} has no engine"
        return engine

    async def until(self, condition: Callable[[], bool], what: str, within_s: float = PATIENCE_S) -> None:
        """Wait for something to become true."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
            await asyncio.sleep(0.01)

    async def until_state(self, expert_id: str, state: State, within_s: float = PATIENCE_S) -> None:
        await self.until(lambda: self.state(expert_id) is state, f"{expert_id} {state}", within_s)

    async def load(self, expert_id: str) -> ExpertEngine:
        """The expert's engine, loaded by a request that asks nothing of it."""
        async with self.manager.lease(expert_id) as lease:
            return lease.engine

    def metric(self, line_start: str) -> float:
        """The value of one of the server's own series, by how its line begins."""
        page = generate_latest(self.metrics.registry).decode()
        found = [line for line in page.splitlines() if line.startswith(line_start)]
        assert len(found) == 1, (line_start, found)
        return float(found[0].rsplit(" ", 1)[1])


async def chat(lease: Lease, **options: Any) -> httpx.Response:
    """One chat with a leased expert, through vLLM's own app."""
    transport = httpx.ASGITransport(app=lease.engine.app, raise_app_exceptions=False)
    body = {
        "model": lease.slot.expert_id,
        "messages": [{"role": "user", "content": "Hola"}],
        "max_tokens": 4,
        **options,
    }
    async with httpx.AsyncClient(transport=transport, base_url="http://expert", timeout=120) as client:
        return await client.post("/v1/chat/completions", json=body)


@functools.cache
def _parser() -> Any:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    return serve_parser()


@asynccontextmanager
async def expert_stand(
    demo_models: Path,
    folder: Path,
    *,
    read_memory: Callable[[], MachineMemory] = read_machine_memory,
    **changes: Any,
) -> AsyncIterator[Stand]:
    """A manager of `demo_config(**changes)`, with nothing warm unless the changes say so; its engines are
    gone afterwards.
    """
    lazy = {"warmup_pool_size": 0, "auto_unload_after_s": 0, "min_residency_s": 0}
    changes["lazy_loading"] = {**lazy, **changes.get("lazy_loading", {})}
    file = folder / "config.json"
    file.write_text(json.dumps(demo_config(demo_models, **changes)))
    config = MultiModelConfig.load(file)
    known = architectures(config)
    start_fork_server(known)
    import_architecture(known)
    parser = _parser()
    series = {e.expert_id: ExpertSeries(e.expert_id) for e in config.experts}
    metrics = ServerMetrics({e.expert_id: e.domain for e in config.experts})
    with run_directory() as sockets:
        factory = EngineFactory(
            parser, parser.parse_args([]), config.base_dir, threads=2, run_directory=sockets
        )
        manager = LazyExpertManager(config, factory, series, metrics, read_memory=read_memory)
        await manager.start()
        try:
            yield Stand(manager, factory, config, metrics, folder)
        finally:
            await manager.stop()
        assert engine_processes() == [], "the manager stopped and left engines"
        assert list(sockets.iterdir()) == [], "the manager stopped and left files"


def engine_processes() -> list[psutil.Process]:
    """Engines started by this process: what its own fork server has forked and is not a zombie.

    Servers that other tests have started are below this process too, each with a fork server of its own.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = process.parent()
            ours = parent is not None and parent.ppid() == os.getpid()
            forked = ours and "forkserver" in " ".join(parent.cmdline() if parent else ())
            if forked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
