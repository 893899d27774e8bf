# SPDX-License-Identifier: Apache-2.0
"""The router on real servers: an expert that makes embeddings, and the file edited while it runs."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running_server import RunningServer, StartServer
from vllm_axion.serving.embedding_cache import FILE_NAME

EMBEDDER = "embedder"
CODE = "Escribe una función en Python que ordene una lista de números"
LEGAL = {"examples": ["¿Es válida esta cláusula del contrato?", "Can my landlord evict me?", "Draft a lease"]}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("router-cache")


@pytest.fixture(scope="module")
def server(start_server: StartServer, demo_models: Path, cache: Path) -> Iterator[RunningServer]:
    """Two experts that chat, and one made of the coder's checkpoint that encodes for the router.

    Nothing is loaded until a test asks for it."""
    embedder = {
        "expert_id": EMBEDDER,
        "model_path": str(demo_models / "qwen_coder"),
        "domain": "general",
        "priority": 1,
        "max_model_len": 256,
        "engine_args": {"runner": "pooling", "convert": "embed"},
    }
    server = start_server(
        environment={"VLLM_AXION_CACHE": str(cache)},
        experts={"mistral_balanced": embedder},
        only=["phi4_fast", "qwen_coder", EMBEDDER],
        lazy_loading={"warmup_pool_size": 0, "auto_unload_after_s": 3600, "min_residency_s": 0},
        router={
            "encoder": {"type": "expert", "expert_id": EMBEDDER, "timeout_s": 30},
            "embedding_cache": {"persist": True},
        },
    )
    yield server
    assert server.stop() == 0


def explain(server: RunningServer, text: str) -> dict[str, Any]:
    with server.http() as client:
        answer = client.post("/v1/route", json={"messages": [{"role": "user", "content": text}]})
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def edit(server: RunningServer, **changes: Any) -> None:
    """Change the server's configuration file, whole, as an editor does."""
    path = server.log.parent / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(data))
    fresh.replace(path)


def metric(server: RunningServer, series: str) -> float:
    with server.http() as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


# In the order they stand here: the server begins with nothing loaded.


def test_an_encoder_that_is_not_loaded_is_not_loaded_by_routing(server: RunningServer) -> None:
    told = explain(server, CODE)
    assert told["expert_id"] == "qwen_coder"
    assert (told["encoder"], told["cache_hit"], told["second_stage"]) == ("ngram", None, False)
    assert told["fallback"] == f"without expert:{EMBEDDER}: the expert {EMBEDDER} is not loaded"
    assert told["fallback"] in told["reason"]
    with server.http() as client:
        chat = {"messages": [{"role": "user", "content": CODE}], "max_tokens": 2}
        answer = client.post("/v1/chat/completions", json=chat)
    assert answer.headers["x-axion-expert"] == "qwen_coder"
    assert server.expert(EMBEDDER)["state"] == "unloaded"
    assert server.expert(EMBEDDER)["loads"] == 0


def test_embeddings_through_the_gateway_come_from_the_expert_that_makes_them(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.post("/v1/embeddings", json={"input": ["hola", "hola", "adiós a todos"]})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-axion-expert"] == EMBEDDER
    body = answer.json()
    assert body["model"] == EMBEDDER
    one, same, other = (row["embedding"] for row in body["data"])
    assert math.isclose(sum(x * x for x in one), 1.0, rel_tol=1e-2)
    assert sum(x * y for x, y in zip(one, same, strict=True)) > 0.99
    assert one != other
    by_name = server.openai().embeddings.create(model=EMBEDDER, input="hola")
    assert len(by_name.data[0].embedding) == len(one)


def test_once_loaded_the_expert_encodes_for_the_router_and_answers_from_the_cache_the_second_time(
    server: RunningServer,
) -> None:
    def ready() -> bool:
        found: bool = server.get("/stats")["router"]["encoder"]["ready"]
        return found

    server.wait_until(ready, 120, "the examples are encoded")
    first, again = explain(server, CODE), explain(server, CODE)
    for told in (first, again):
        assert told["encoder"] == f"expert:{EMBEDDER}"
        assert told["fallback"] is None
        assert told["evidence"] == [] or told["evidence"][0].startswith("like «")
        assert math.isclose(sum(told["probabilities"].values()), 1.0, rel_tol=1e-6)
    assert [first["cache_hit"], again["cache_hit"]] == [False, True]
    stats = server.get("/stats")["router"]
    assert stats["encoder"] == {
        "name": f"expert:{EMBEDDER}",
        "ready": True,
        "problem": None,
        "examples": stats["encoder"]["examples"],
    }
    assert stats["cache"]["entries"] > 100 and stats["cache"]["hits"] >= 1
    assert metric(server, 'vllm_axion:router_cache_lookups_total{result="hit"}') >= 1
    assert metric(server, 'vllm_axion:router_encoder_total{outcome="used",stage="first"}') >= 2
    assert metric(server, "vllm_axion:router_cache_bytes") == server.get("/stats")["router"]["cache"]["bytes"]


def test_a_chat_is_routed_by_the_encoder_and_never_to_it(server: RunningServer) -> None:
    for text in [CODE, "hola, ¿qué tal?", "mmm", "translate this to French: good morning"]:
        with server.http() as client:
            chat = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
            answer = client.post("/v1/chat/completions", json=chat)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-axion-expert"] in ("phi4_fast", "qwen_coder")
        assert EMBEDDER not in answer.headers["x-axion-expert"]


def test_odd_bodies_get_an_answer_or_a_plain_refusal(server: RunningServer) -> None:
    bodies: list[Any] = [
        {}, {"messages": None}, {"messages": []}, {"messages": "hola"}, {"messages": [None, 3, "x"]},
        {"messages": [{"role": "user", "content": None}]}, {"messages": [{"role": "wizard", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "smell", "smell": 1}, None]}]}, {"prompt": ""},
        {"prompt": "\ud800"}, {"prompt": "\x00\x00"}, {"prompt": "\u202e\u200f"}, {"prompt": "😀" * 50},
        {"prompt": "?!…"}, {"prompt": "palabra " * 130_000}, {"prompt": [1, 2, 3]}, {"prompt": {"a": 1}},
    ]  # fmt: skip
    with server.http() as client:
        for body in bodies:
            sent = json.dumps(body).encode()
            answer = client.post("/v1/route", content=sent, headers={"content-type": "application/json"})
            assert answer.status_code in (200, 400), (sent[:100], answer.text)
            assert ("expert_id" in answer.json()) == (answer.status_code == 200)
            assert ("error" in answer.json()) == (answer.status_code == 400)


def test_an_unloaded_encoder_is_gone_without_does_not_hang_and_stays_unloaded(server: RunningServer) -> None:
    with server.http() as client:
        client.post("/models/unload", json={"model": EMBEDDER}).raise_for_status()
    server.wait_for_state(EMBEDDER, "unloaded")
    told = explain(server, "una pregunta que nadie ha hecho todavía sobre Python")
    assert told["encoder"] == "ngram" and "is not loaded" in told["reason"]
    known = explain(server, CODE)
    assert (known["encoder"], known["cache_hit"]) == (f"expert:{EMBEDDER}", True)
    assert server.expert(EMBEDDER)["state"] == "unloaded"


def test_examples_and_domains_are_read_while_it_runs_and_the_rest_waits(server: RunningServer) -> None:
    path = server.log.parent / "config.json"
    experts = json.loads(path.read_text())["experts"]
    for expert in experts:
        if expert["expert_id"] == "phi4_fast":
            expert |= {"domain": "legal", "description": "Law", "priority": 4}
    edit(
        server, domains={"legal": LEGAL}, experts=experts, router={"threshold": 0.3}, limits={"max_queue": 7}
    )
    server.wait_until(lambda: server.get("/stats")["router"]["renewals"] == 1, 30, "the file is read")
    told = explain(server, "¿Es válida esta cláusula de mi contrato de alquiler?")
    assert (told["domain"], told["expert_id"], told["encoder"]) == ("legal", "phi4_fast", "ngram")
    card = server.get("/v1/models/phi4_fast")
    assert (card["domain"], card["description"]) == ("legal", "Law")
    assert server.expert("phi4_fast")["priority"] != 4
    log = server.log.read_text()
    assert log.count("restart to apply") == 1
    assert "limits" in log and "].priority" in log
    assert metric(server, 'vllm_axion:router_reloads_total{outcome="applied"}') == 1
    assert metric(server, 'vllm_axion:routes_total{domain="legal"}') >= 1


def test_a_broken_file_keeps_the_router_and_logs_each_fault(server: RunningServer) -> None:
    path = server.log.parent / "config.json"
    good = path.read_text()
    path.write_text(good.replace('"threshold"', '"treshold"'))
    refused = 'vllm_axion:router_reloads_total{outcome="refused"}'
    server.wait_until(lambda: metric(server, refused) == 1, 30, "the fault is seen")
    assert 'router.treshold: unknown field; did you mean "threshold"?' in server.log.read_text()
    assert explain(server, "¿Es válida esta cláusula de mi contrato?")["domain"] == "legal"
    path.write_text(good.replace('"threshold": 0.3', '"threshold": 0.2'))
    server.wait_until(lambda: server.get("/stats")["router"]["renewals"] == 2, 30, "the good file is read")


def test_the_cache_of_a_stopped_server_is_private_and_holds_no_text(
    server: RunningServer, cache: Path
) -> None:
    assert server.stop() == 0
    kept = cache / FILE_NAME
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert b"Python" not in kept.read_bytes()


def test_an_encoder_that_may_be_loaded_is_loaded_in_the_background(
    start_server: StartServer, demo_models: Path, cache: Path
) -> None:
    assert (cache / FILE_NAME).exists(), "the tests above leave a cache"
    embedder = {
        "expert_id": EMBEDDER,
        "model_path": str(demo_models / "qwen_coder"),
        "max_model_len": 256,
        "engine_args": {"runner": "pooling", "convert": "embed"},
    }
    server = start_server(
        environment={"VLLM_AXION_CACHE": str(cache)},
        experts={"mistral_balanced": embedder},
        only=["phi4_fast", "qwen_coder", EMBEDDER],
        lazy_loading={"warmup_pool_size": 0, "min_residency_s": 0},
        router={
            "second_stage": {"type": "expert", "expert_id": EMBEDDER, "load": True, "timeout_s": 30},
            "threshold": 0.999,
            "embedding_cache": {"persist": True},
        },
    )
    unsure = "mmm esto de aquello, lo de siempre"
    # The examples are in the cache that the server before has left, so nothing had to be loaded for them.
    server.wait_until(lambda: server.get("/stats")["router"]["second_stage"]["ready"], 60, "examples")
    told = explain(server, unsure)
    assert told["second_stage"] and "is not loaded" in told["fallback"]
    assert server.expert(EMBEDDER)["state"] == "unloaded", "an explanation loads nothing"
    with server.http() as client:
        chat = {"messages": [{"role": "user", "content": unsure}], "max_tokens": 2}
        answer = client.post("/v1/chat/completions", json=chat)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-axion-expert"] != EMBEDDER
    server.wait_for_state(EMBEDDER, "loaded")
    told = explain(server, unsure)
    assert (told["encoder"], told["second_stage"]) == (f"expert:{EMBEDDER}", True)
    assert "second stage, since ngram was unsure" in told["reason"]
    assert server.stop() == 0
