# SPDX-License-Identifier: Apache-2.0
"""What each profile does ahead of being asked, on real servers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.serving.running_server import RunningServer, StartServer
from vllm_axion.serving.profiles import PROFILES

A, B, C = "phi4_fast", "qwen_coder", "mistral_balanced"
ALL = [A, B, C]
ROOM_FOR_TWO = {"max_loaded_experts": 2, "min_residency_s": 0, "auto_unload_after_s": 3600}
LONG_ENOUGH_S = 3.0
"""A load that nothing forbids has begun long before; its state is then visible."""


def chat(server: RunningServer, expert_id: str) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hola"}], "max_tokens": 1}
    with server.http() as client:
        client.post("/v1/chat/completions", json={**body, "model": expert_id}).raise_for_status()


def unload(server: RunningServer, expert_id: str) -> None:
    with server.http() as client:
        client.post("/models/unload", json={"model": expert_id}).raise_for_status()
    server.wait_for_state(expert_id, "unloaded")


def states(server: RunningServer) -> dict[str, str]:
    return {name: expert["state"] for name, expert in server.get("/stats")["experts"].items()}


def loads(server: RunningServer) -> int:
    return sum(expert["loads"] for expert in server.get("/stats")["experts"].values())


def prefetches(server: RunningServer) -> dict[tuple[str, str], float]:
    with server.http() as client:
        page = client.get("/metrics").text
    return {
        (sample.labels["expert"], sample.labels["outcome"]): sample.value
        for family in parse_text(page)
        for sample in family.samples
        if sample.name == "vllm_axion:prefetches_total"
    }


def teach_a_pattern(server: RunningServer) -> None:
    for expert_id in (A, B) * 5:
        chat(server, expert_id)


@pytest.fixture(scope="module")
def stable(start_server: StartServer) -> RunningServer:
    """The file says optimized, the flag stable."""
    return start_server(
        "--profile",
        "stable",
        profile="optimized",
        lazy_loading={**ROOM_FOR_TWO, "warmup_pool_size": 2},
        only=ALL,
    )


def test_stable_loads_nothing_at_start_whatever_the_file_says(stable: RunningServer) -> None:
    time.sleep(LONG_ENOUGH_S)
    assert states(stable) == dict.fromkeys(ALL, "unloaded")
    assert loads(stable) == 0
    assert not any(expert["warm"] for expert in stable.get("/stats")["experts"].values())


def test_stable_guesses_nothing(stable: RunningServer) -> None:
    teach_a_pattern(stable)
    chat(stable, C)
    (evicted,) = [name for name in (A, B) if stable.expert(name)["state"] != "loaded"]
    unload(stable, C)
    before = loads(stable)
    time.sleep(LONG_ENOUGH_S)
    assert states(stable)[evicted] == "unloaded"
    assert loads(stable) == before
    assert set(prefetches(stable).values()) == {0.0}
    assert stable.stop() == 0


@pytest.fixture(scope="module")
def optimized(start_server: StartServer) -> RunningServer:
    """The file says optimized, and no flag says otherwise."""
    return start_server(profile="optimized", lazy_loading={**ROOM_FOR_TWO, "warmup_pool_size": 0}, only=ALL)


def test_optimized_prefetches_into_free_memory_and_counts_hits_and_waste(optimized: RunningServer) -> None:
    teach_a_pattern(optimized)
    chat(optimized, C)  # room for two: A or B had to go
    (likely,) = [name for name in (A, B) if optimized.expert(name)["state"] != "loaded"]
    kept = A if likely == B else B
    before = loads(optimized)
    time.sleep(LONG_ENOUGH_S)
    assert loads(optimized) == before, "no room: a guess evicts nobody"
    assert optimized.expert(kept)["state"] == optimized.expert(C)["state"] == "loaded"

    unload(optimized, C)  # room for one
    optimized.wait_for_state(likely, "loaded")
    assert loads(optimized) == before + 1
    assert optimized.expert(kept)["state"] == "loaded"
    assert set(prefetches(optimized).values()) == {0.0}, "neither right nor wrong yet"

    unload(optimized, likely)
    assert prefetches(optimized)[likely, "waste"] == 1

    chat(optimized, likely)  # asked for and loaded: no guess, so neither hit nor waste
    assert prefetches(optimized)[likely, "hit"] == 0

    chat(optimized, C)
    (likely,) = [name for name in (A, B) if optimized.expert(name)["state"] != "loaded"]
    unload(optimized, C)
    optimized.wait_for_state(likely, "loaded")
    chat(optimized, likely)
    chat(optimized, likely)
    assert prefetches(optimized)[likely, "hit"] == 1, "a guess is right once"
    assert sum(prefetches(optimized).values()) == 2
    assert optimized.stop() == 0


def test_the_guide_says_of_each_profile_what_it_does(repository: Path) -> None:
    text = (repository / "docs" / "serving.md").read_text("utf-8")
    table = text.split("## Profiles\n", 1)[1].split("\n\n* ", 1)[0]
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    said = {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}
    assert said.keys() == PROFILES.keys()
    for name, profile in PROFILES.items():
        assert (said[name]["warm pool at start"] == "yes") == profile.warm_pool
        assert (said[name]["prefetch of likely experts"] == "yes") == profile.prefetch
        assert said[name]["vLLM's prefix caching"].startswith("on") == bool(profile.prefix_caching)
