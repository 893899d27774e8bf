# SPDX-License-Identifier: Apache-2.0
"""The server's own endpoints: routing explained, loading on request, events, metrics, request ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics import parser as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.running_server import RunningServer

PROMETHEUS_LOADED = ("phi4_fast", "aya_expanse_multilingual")
HOLA = [{"role": "user", "content": "Hola"}]


def _loads(server: RunningServer) -> dict[str, int]:
    return {expert_id: stats["loads"] for expert_id, stats in server.get("/stats")["experts"].items()}


@contextmanager
def _events(server: RunningServer) -> Iterator[list[dict[str, Any]]]:
    """Residency events as they come; complete when the context has ended the stream."""
    got: list[dict[str, Any]] = []
    began = threading.Event()
    with server.http() as client, client.stream("GET", "/models/sse") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")

        def read() -> None:
            try:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        got.append(json.loads(line.removeprefix("data: ")))
                        began.set()
            except httpx.HTTPError:
                pass  # closed by us

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert began.wait(10)
        yield got
        answer.close()
    reader.join(10)


# /v1/route


def test_route_says_which_expert_and_why_and_loads_nothing(server: RunningServer) -> None:
    with server.http() as client:
        client.post("/models/unload", json={"model": "qwen_coder"}).raise_for_status()
        server.wait_for_state("qwen_coder", "unloaded")
        before = _loads(server)
        answer = client.post("/v1/route", json={"prompt": "Write a Python function that sorts a list"}).json()
    assert set(answer) >= {
        "expert_id",
        "domain",
        "confidence",
        "probabilities",
        "runner_up",
        "evidence",
        "abstained",
        "reason",
        "ms",
        "loaded",
    }
    assert answer["expert_id"] == "qwen_coder" and answer["domain"] == "coding"
    assert answer["loaded"] is False and answer["abstained"] is False
    assert 0.5 < answer["confidence"] <= 1 and answer["evidence"] and answer["ms"] > 0
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert _loads(server) == before and server.expert("qwen_coder")["state"] == "unloaded"


def test_route_takes_every_shape_of_question(server: RunningServer) -> None:
    bodies: list[dict[str, Any]] = [
        {"messages": HOLA},
        {"prompt": "Hola"},
        {"input": "Hola"},
        {"input": HOLA},
        {"messages": []},
        {},
    ]
    with server.http() as client:
        for body in bodies:
            answer = client.post("/v1/route", json=body)
            assert answer.status_code == 200 and answer.json()["expert_id"], body
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        seen = client.post("/v1/route", json={"messages": [{"role": "user", "content": [picture]}]})
    assert seen.json()["expert_id"] == "gemma3_multimodal"


def test_route_without_a_body_says_what_it_wants(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.post("/v1/route")
    assert answer.status_code == 400 and "JSON object" in answer.json()["error"]["message"]


# /models/load, /models/unload, /models/sse


def test_load_and_unload_on_request_are_told_as_events_in_order(server: RunningServer) -> None:
    expert_id = "mistral_balanced"
    with server.http() as client:
        client.post("/models/unload", json={"model": expert_id}).raise_for_status()
        server.wait_for_state(expert_id, "unloaded")
        with _events(server) as events:
            assert client.post("/models/load", json={"model": expert_id}).json() == {"success": True}
            server.wait_for_state(expert_id, "loaded")
            assert client.post("/models/unload", json={"model": expert_id}).json() == {"success": True}
            server.wait_for_state(expert_id, "unloaded")
            server.wait_until(
                lambda: [e for e in events if e["model"] == expert_id][-1]["data"]["status"] == "unloaded"
            )
    assert all(set(e) == {"model", "event", "data"} for e in events)
    assert {e["model"] for e in events if e["event"] == "model_status"} == set(_loads(server))
    mine = [e for e in events if e["model"] == expert_id]
    assert mine[0]["event"] == "model_status" and mine[0]["data"]["status"] == "unloaded"
    changes = [e["data"] for e in mine if e["event"] == "status_change"]
    states = [c["status"] for c in changes]
    assert [s for i, s in enumerate(states) if i == 0 or states[i - 1] != s] == [
        "loading",
        "loaded",
        "unloaded",
    ]
    stages = [c["progress"]["stage"] for c in changes if c["status"] == "loading"]
    assert [s for i, s in enumerate(stages) if i == 0 or stages[i - 1] != s] == [
        "queued",
        "config",
        "weights",
        "app",
    ]


def test_loading_what_is_loaded_and_unloading_what_is_not_change_nothing(server: RunningServer) -> None:
    with server.http() as client:
        client.post("/v1/chat/completions", json={"model": "phi4_fast", "messages": HOLA, "max_tokens": 1})
        client.post("/models/unload", json={"model": "mistral_balanced"}).raise_for_status()
        server.wait_for_state("mistral_balanced", "unloaded")
        before = _loads(server)
        assert client.post("/models/load", json={"model": "phi4_fast"}).json() == {"success": True}
        assert client.post("/models/unload", json={"model": "mistral_balanced"}).json() == {"success": True}
    assert _loads(server) == before
    assert server.expert("phi4_fast")["state"] == "loaded"


@pytest.mark.parametrize("path", ["/models/load", "/models/unload"])
def test_load_and_unload_need_the_name_of_an_expert(server: RunningServer, path: str) -> None:
    with server.http() as client:
        for body in ({}, {"model": ""}, {"model": "auto"}, {"name": "phi4_fast"}):
            answer = client.post(path, json=body)
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"
        unknown = client.post(path, json={"model": "../x"})
        assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"


# /metrics


def test_metrics_show_every_loaded_expert_and_the_server_on_one_valid_page(server: RunningServer) -> None:
    with server.http() as client:
        for expert_id in PROMETHEUS_LOADED:
            body = {"model": expert_id, "messages": HOLA, "max_tokens": 2}
            client.post("/v1/chat/completions", json=body).raise_for_status()
        answer = client.get("/metrics")
        accept = {"accept": "application/openmetrics-text; version=1.0.0"}
        as_open_metrics = client.get("/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for name in ("vllm:generation_tokens", "vllm:time_to_first_token_seconds", "vllm:num_requests_running"):
        shown = {sample.labels["model_name"] for sample in families[name].samples}
        assert shown >= set(PROMETHEUS_LOADED), name
    own = {name for name in families if name.startswith("vllm_axion:")}
    assert own >= {
        "vllm_axion:expert_loads",
        "vllm_axion:expert_unloads",
        "vllm_axion:expert_state",
        "vllm_axion:requests",
        "vllm_axion:requests_in_flight",
        "vllm_axion:routes",
        "vllm_axion:rejections",
        "vllm_axion:memory_limit_bytes",
        "vllm_axion:expert_memory_bytes",
    }
    assert any(name.startswith("http_") for name in families)
    parsed = open_metrics.text_string_to_metric_families(as_open_metrics.text)  # type: ignore[no-untyped-call]
    # The older format counts the time of creation as a family of its own.
    assert {family.name for family in parsed} >= {name for name in own if not name.endswith("_created")}


def test_metrics_agree_with_stats(server: RunningServer) -> None:
    server.openai().completions.create(model="phi4_fast", prompt="x", max_tokens=2)
    expert = server.expert("phi4_fast")
    with server.http() as client:
        page = client.get("/metrics").text
    values = {
        (
            sample.name,
            sample.labels.get("expert") or sample.labels.get("model_name"),
            sample.labels.get("outcome"),
        ): sample
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert values["vllm_axion:expert_loads_total", "phi4_fast", "loaded"].value == expert["loads"]
    assert values["vllm:generation_tokens_total", "phi4_fast", None].value == expert["tokens"]["out"]


def test_a_scrape_loads_nothing(server: RunningServer) -> None:
    with server.http() as client:
        client.post("/models/unload", json={"model": "qwen_coder"}).raise_for_status()
        server.wait_for_state("qwen_coder", "unloaded")
        before = _loads(server)
        for _ in range(3):
            client.get("/metrics").raise_for_status()
    assert _loads(server) == before and server.expert("qwen_coder")["state"] == "unloaded"


# Request ids, documentation


@pytest.mark.parametrize("path", ["/health", "/v1/nothing", "/v1/models/x", "/v1/chat/completions"])
def test_every_answer_carries_a_request_id_of_its_own(server: RunningServer, path: str) -> None:
    with server.http() as client:
        first, second = client.get(path), client.get(path)
    assert len(first.headers["x-request-id"]) >= 16
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_a_clients_request_id_comes_back_if_it_is_a_sound_one(server: RunningServer) -> None:
    with server.http() as client:
        assert (
            client.get("/health", headers={"x-request-id": "abc-1.2/3"}).headers["x-request-id"]
            == "abc-1.2/3"
        )
        for bad in ("a b", "x" * 129, "é", '"<script>"'):
            answer = client.get("/health", headers=[(b"x-request-id", bad.encode())])
            assert answer.headers["x-request-id"] != bad


def test_requests_with_the_same_id_do_not_disturb_each_other(server: RunningServer) -> None:
    body = {"model": "phi4_fast", "messages": HOLA, "max_tokens": 40, "ignore_eos": True}
    answers: list[httpx.Response] = []

    def ask() -> None:
        headers = {"x-request-id": "the-same"}
        answers.append(
            httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=60)
        )

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [a.status_code for a in answers] == [200] * 4
    assert [a.json()["usage"]["completion_tokens"] for a in answers] == [40] * 4


def test_versions_and_load_level(server: RunningServer) -> None:
    assert set(server.get("/version")) == {"version", "vllm_axion"}
    assert server.get("/load") == {"server_load": 0}


def test_docs_pages_are_there(server: RunningServer) -> None:
    with server.http() as client:
        for path in ("/docs", "/redoc"):
            answer = client.get(path)
            assert answer.status_code == 200 and "openapi.json" in answer.text


def test_browsers_of_other_sites_are_not_let_in_unless_configured(server: RunningServer) -> None:
    with server.http() as client:
        answer = client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert not any(name.startswith("access-control") for name in answer.headers)
