# SPDX-License-Identifier: Apache-2.0
"""What of a changed configuration file applies at once, what waits, and when the file is looked at."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.config_reload import ConfigWatch, change

CODER = {"expert_id": "coder", "model_path": "owner/model", "domain": "coding"}
CHAT = {"expert_id": "chat", "model_path": "owner/other"}
BASE: dict[str, Any] = {"experts": [CODER, CHAT]}
EVERY_S = 0.04


def read(**changes: Any) -> MultiModelConfig:
    return MultiModelConfig.from_data({**BASE, **changes}, base_dir=Path("/srv"))


# ---------------------------------------------------------------- what applies


@pytest.mark.parametrize(
    ("changes", "applied", "waiting"),
    [
        ({}, (), ()),
        ({"router": {"threshold": 0.7}}, ("router",), ()),
        ({"domains": {"legal": {"examples": ["a"]}}}, ("domains",), ()),
        ({"experts": [{**CODER, "description": "new"}, CHAT]}, ("experts[0].description",), ()),
        ({"experts": [CODER, {**CHAT, "domain": "technical"}]}, ("experts[1].domain",), ()),
        ({"experts": [CHAT, CODER]}, (), ()),
        (
            {"experts": [{**CODER, "priority": 1, "domain": "general"}, CHAT]},
            ("experts[0].domain",), ("experts[0].priority",),
        ),
        ({"experts": [CODER, CHAT, {**CHAT, "expert_id": "new"}]}, (), ("experts: new",)),
        ({"experts": [CODER]}, (), ("experts: without chat",)),
        ({"limits": {"max_queue": 3}}, (), ("limits",)),
        ({"server": {"cors_origins": ["*"]}}, (), ("server",)),
        ({"profile": "stable"}, (), ("profile",)),
        (
            {"router": {"embedding_cache": {"persist": True}}},
            ("router",), ("router.embedding_cache.persist",),
        ),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_router_reads_applies_and_the_rest_waits(
    changes: dict[str, Any], applied: tuple[str, ...], waiting: tuple[str, ...]
) -> None:
    found = change(read(), read(**changes))
    assert (found.applied, found.waiting) == (applied, waiting)


def test_a_running_server_keeps_its_experts_and_what_waits_for_a_restart() -> None:
    experts = [{**CODER, "priority": 1, "description": "new"}, {**CHAT, "expert_id": "other"}]
    found = change(read(), read(experts=experts, limits={"max_queue": 3}, router={"threshold": 0.9})).config
    assert [(e.expert_id, e.priority, e.description) for e in found.experts] == [
        ("coder", 3, "new"),
        ("chat", 3, ""),
    ]
    assert found.limits == read().limits
    assert found.router.threshold == 0.9
    assert found.base_dir == Path("/srv")


# ---------------------------------------------------------------- the watch


class Watched:
    """A watched file, what was applied of it and how often it was refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.applied: list[MultiModelConfig] = []
        self.refused = 0
        self.write(BASE)
        self.watch = ConfigWatch(path, MultiModelConfig.load(path), self._apply, self._refuse, EVERY_S)

    def write(self, data: Any) -> None:
        self.path.write_text(data if isinstance(data, str) else json.dumps(data))

    async def _apply(self, config: MultiModelConfig) -> None:
        if config.router.threshold == 0.666:
            raise RuntimeError("the router cannot be made")
        self.applied.append(config)

    def _refuse(self) -> None:
        self.refused += 1

    async def __aenter__(self) -> Watched:
        self.watch.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.watch.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for is a file
            await asyncio.sleep(0.005)


def log_of(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.name == "vllm_axion.router")


@pytest.fixture
def watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.INFO, "vllm_axion.router")
    return Watched(tmp_path / "config.json")


async def test_an_edit_is_applied_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    async with watched:
        watched.write({**BASE, "router": {"threshold": 0.75}})
        await until(lambda: len(watched.applied) == 1)
        await asyncio.sleep(5 * EVERY_S)
    assert [config.router.threshold for config in watched.applied] == [0.75]
    assert log_of(caplog) == "config.json: applied router"


async def test_a_file_put_in_its_place_or_a_link_turned_elsewhere_is_an_edit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    second.write_text(json.dumps({**BASE, "router": {"threshold": 0.75}}))
    link = tmp_path / "config.json"
    link.symlink_to(first)
    watched = Watched(link)
    async with watched:
        fresh = tmp_path / "fresh"
        fresh.symlink_to(second)
        os.replace(fresh, link)  # noqa: PTH105 - in a coroutine
        await until(lambda: len(watched.applied) == 1)
    assert watched.applied[0].router.threshold == 0.75


async def test_a_broken_or_missing_file_is_refused_and_a_good_one_after_it_applied(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched:
        watched.write('{"experts": [')
        await until(lambda: watched.refused == 1)
        watched.path.unlink()
        await until(lambda: watched.refused == 2)
        watched.write({**BASE, "router": {"threshold": 3, "treshold": 1}})
        await until(lambda: watched.refused == 3)
        assert watched.applied == []
        watched.write({**BASE, "router": {"threshold": 0.9}})
        await until(lambda: len(watched.applied) == 1)
    log = log_of(caplog)
    assert log.count("routing stays as it was") == 3
    assert "not valid JSON" in log and "no such file" in log
    assert "router.threshold: 3 is not within 0..1" in log and 'did you mean "threshold"?' in log


async def test_what_waits_for_a_restart_is_told_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = {**BASE, "limits": {"max_queue": 3}}
    async with watched:
        watched.write(waiting)
        await until(lambda: "restart to apply limits" in log_of(caplog))
        assert watched.applied == []
        watched.write({**waiting, "router": {"threshold": 0.9}})
        await until(lambda: len(watched.applied) == 1)
    assert log_of(caplog).count("restart to apply") == 1


async def test_an_edit_that_cannot_be_applied_is_logged_and_the_watch_goes_on(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched:
        watched.write({**BASE, "router": {"threshold": 0.666}})
        await until(lambda: "could not be applied" in log_of(caplog))
        watched.write({**BASE, "router": {"threshold": 0.9}})
        await until(lambda: len(watched.applied) == 1)


async def test_a_key_that_was_taken_out_of_the_environment_at_start_does_not_stop_a_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AXION_TEST_KEY", "sk-1234567890")
    monkeypatch.setitem(BASE, "server", {"api_keys": [{"key_env": "AXION_TEST_KEY"}]})
    watched = Watched(tmp_path / "config.json")
    monkeypatch.delenv("AXION_TEST_KEY")
    async with watched:
        watched.write({**BASE, "router": {"threshold": 0.9}})
        await until(lambda: len(watched.applied) == 1)
    assert watched.refused == 0


async def test_a_file_that_is_only_touched_changes_nothing(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched:
        watched.write(json.dumps(BASE, indent=4))
        await asyncio.sleep(8 * EVERY_S)
    assert watched.applied == [] and watched.refused == 0
    assert log_of(caplog) == ""
