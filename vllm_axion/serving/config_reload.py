# SPDX-License-Identifier: Apache-2.0
"""Changes of the configuration file under a running server: what the router reads applies at once.

That is the sections `router` and `domains`, and each expert's `domain` and `description`. All else waits for
a restart, and one line in the log says so. A file with faults changes nothing, and its faults are logged.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vllm_axion.serving.config import (
    ConfigError,
    ExpertConfig,
    MultiModelConfig,
    examine,
    find_config,
    read_data,
)
from vllm_axion.serving.config_faults import json_path

logger = logging.getLogger("vllm_axion.router")

LOOK_EVERY_S = 2.0
_OF_EXPERTS = ("domain", "description")

Apply = Callable[[MultiModelConfig], Awaitable[None]]
State = tuple[int, int, int]


@dataclass(frozen=True)
class Change:
    """`config` is what the server runs by from now on; `applied` and `waiting` are JSON paths."""

    config: MultiModelConfig
    applied: tuple[str, ...]
    waiting: tuple[str, ...]


def change(running: MultiModelConfig, read: MultiModelConfig) -> Change:
    """What of a newly read file applies to a running server, and what waits for a restart."""
    applied: list[str] = []
    waiting = sorted(_other_sections(running, read))
    experts: list[ExpertConfig] = []
    by_id = {expert.expert_id: expert for expert in read.experts}
    for index, old in enumerate(running.experts):
        new = by_id.pop(old.expert_id, None)
        if new is None:
            waiting.append(f"experts: without {old.expert_id}")
            experts.append(old)
            continue
        for name in type(old).model_fields:
            if getattr(old, name) != getattr(new, name):
                (applied if name in _OF_EXPERTS else waiting).append(json_path(("experts", index, name)))
        experts.append(old.model_copy(update={name: getattr(new, name) for name in _OF_EXPERTS}))
    waiting += [f"experts: {expert_id}" for expert_id in by_id]
    for name in ("router", "domains"):
        if getattr(running, name) != getattr(read, name):
            applied.append(name)
    if running.router.embedding_cache.persist != read.router.embedding_cache.persist:
        waiting.append("router.embedding_cache.persist")
    config = running.model_copy(update={"experts": experts, "router": read.router, "domains": read.domains})
    return Change(config, tuple(applied), tuple(waiting))


def _other_sections(running: MultiModelConfig, read: MultiModelConfig) -> Iterator[str]:
    for name in type(running).model_fields:
        if name not in ("experts", "router", "domains") and getattr(running, name) != getattr(read, name):
            yield name


class ConfigWatch:
    """Looks at the file every two seconds and hands on what changed. Belongs to one event loop.

    A change counts when two looks in a row see the same state of the file: an editor may still be writing."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        running: MultiModelConfig,
        apply: Apply,
        refused: Callable[[], None] = lambda: None,
        every_s: float = LOOK_EVERY_S,
    ) -> None:
        """`apply` gets the configuration to run by; `refused` is told of a file with faults."""
        self._path = find_config(path)
        self._running = running
        self._last_read = running
        self._apply = apply
        self._refused = refused
        self._every_s = every_s
        self._seen = _state(self._path)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._watch(), name="config-watch")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _watch(self) -> None:
        before = self._seen
        while True:
            await asyncio.sleep(self._every_s / 2)
            now = _state(self._path)
            if now == before and now != self._seen:
                self._seen = now
                try:
                    await self._read()
                except Exception:
                    logger.exception("the changed configuration could not be applied; nothing was changed")
            before = now

    async def _read(self) -> None:
        name = self._path.name
        try:
            read = await asyncio.to_thread(_load, self._path)
        except ConfigError as error:
            logger.error("%s has changed and cannot be used; routing stays as it was", name)
            for fault in error.faults:
                logger.error("%s: %s", name, fault)
            self._refused()
            return
        found = change(self._running, read)
        # What waits is told once, not again with every later change.
        news = [path for path in found.waiting if path not in change(self._running, self._last_read).waiting]
        self._last_read = read
        if found.applied:
            await self._apply(found.config)
            self._running = found.config
            logger.info("%s: applied %s", name, ", ".join(found.applied))
        if news:
            logger.warning("%s: restart to apply %s", name, ", ".join(news))


def _load(path: Path) -> MultiModelConfig:
    """As `MultiModelConfig.load`, but keys that cannot be read any more are no fault: they were read at
    start, where some are taken out of the environment. Raises ConfigError."""
    data, base, faults = read_data(path)
    config, more = (None, []) if data is None and faults else examine(data, base)
    faults += [fault for fault in more if config is None or not fault.path.startswith("server.api_keys[")]
    if config is None or faults:
        raise ConfigError(path.name, list(dict.fromkeys(faults)))
    return config


def _state(path: Path) -> State:
    """Changes with the file, also when it is put in place as another file or through a link."""
    try:
        info = path.stat()
    except OSError:
        return (0, 0, 0)
    return (info.st_ino, info.st_size, info.st_mtime_ns)
