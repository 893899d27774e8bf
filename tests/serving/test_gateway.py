# SPDX-License-Identifier: Apache-2.0
"""A request's way to its expert, and every fault that may meet it there.

One server for the file: nothing warm, small limits, no idle unload. Its experts fail and come back.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.serving.running_server import RunningServer, StartServer
from tests.serving.stalled_load import later, stalled_load
from vllm_axion.serving.gateway import EARLY_STREAM_AFTER_S

MAX_BODY = 64 * 1024
MAX_QUEUE = 3
EXPERT = "qwen_coder"
LONG: dict[str, Any] = {
    "model": EXPERT,
    "messages": [{"role": "user", "content": "Cuenta una historia"}],
    "max_tokens": 950,
    "ignore_eos": True,
}
SHORT: dict[str, Any] = {**LONG, "max_tokens": 2}


@pytest.fixture(scope="module")
def server(start_server: StartServer) -> Iterator[RunningServer]:
    server = start_server(
        lazy_loading={"warmup_pool_size": 0, "auto_unload_after_s": 3600, "min_residency_s": 0},
        limits={"max_queue": MAX_QUEUE, "max_body_bytes": MAX_BODY},
    )
    yield server
    assert server.stop() == 0


@pytest.fixture
def unloaded(server: RunningServer) -> RunningServer:
    """The server with its expert not in memory."""
    if server.expert(EXPERT)["state"] == "failed":
        _until_answered(server)
    with server.http() as client:
        client.post("/models/unload", json={"model": EXPERT}).raise_for_status()
    server.wait_for_state(EXPERT, "unloaded")
    return server


@pytest.fixture
def loaded(server: RunningServer) -> RunningServer:
    """The server with its expert in memory."""
    _until_answered(server)
    return server


def _until_answered(server: RunningServer, expert_id: str = EXPERT) -> None:
    """An expert that failed may be loaded again after its back-off."""
    with server.http() as client:

        def answered() -> bool:
            answer = client.post("/v1/chat/completions", json={**SHORT, "model": expert_id})
            if answer.status_code == 503:
                time.sleep(float(answer.headers["retry-after"]))
            return answer.status_code == 200

        server.wait_until(answered, 40, f"an answer of {expert_id}")


def _nothing_left(server: RunningServer) -> None:
    def idle() -> bool:
        stats = server.get("/stats")["experts"]
        return all(e["in_flight"] == 0 and e["queue"] == 0 for e in stats.values())

    server.wait_until(idle, 20, "nothing in flight")
    metrics = httpx.get(f"{server.url}/metrics").text
    assert f'vllm_axion:requests_in_flight{{expert="{EXPERT}"}} 0.0' in metrics
    assert f'vllm_axion:requests_waiting{{expert="{EXPERT}"}} 0.0' in metrics
    assert server.get("/load") == {"server_load": 0}


def _connect(server: RunningServer) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _post(connection: socket.socket, body: dict[str, Any], path: str = "/v1/chat/completions") -> None:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)


def _events(lines: list[str]) -> list[str]:
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def _running(server: RunningServer) -> bool:
    """Whether the expert's engine is working on something."""
    return bool(server.expert(EXPERT)["in_flight"])


# A load that takes long


def test_a_stream_whose_load_is_slow_starts_with_comments_and_the_load_event(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, unloaded.http() as client:
        resume = later(EARLY_STREAM_AFTER_S + 1.5, stalled.go_on)
        began = time.monotonic()
        with client.stream("POST", "/v1/chat/completions", json={**SHORT, "stream": True}) as answer:
            headers_after = time.monotonic() - began
            assert unloaded.expert(EXPERT)["state"] == "loading", "the headers came before the expert"
            lines = [line for line in answer.iter_lines() if line]
        resume.join()
    assert answer.status_code == 200 and headers_after >= EARLY_STREAM_AFTER_S
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-axion-expert"] == EXPERT
    assert answer.headers["x-axion-domain"] == "coding"
    assert answer.headers["x-axion-confidence"] == "1.000"
    assert "x-axion-load-ms" not in answer.headers, "not known when the headers left"
    assert lines[0].startswith(f": {EXPERT} is loading, ")
    events = _events(lines)
    load = json.loads(events[0])
    assert load["object"] == "chat.completion.chunk" and load["choices"] == []
    assert load["axion"]["load_ms"] >= 1000 * EARLY_STREAM_AFTER_S
    assert events[-1] == "[DONE]"
    assert "".join(c["delta"].get("content") or "" for e in events[1:-1] for c in json.loads(e)["choices"])


def test_the_official_client_reads_a_stream_whose_load_is_slow(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled:
        resume = later(EARLY_STREAM_AFTER_S + 0.5, stalled.go_on)
        stream = unloaded.openai().chat.completions.create(
            model=EXPERT, messages=LONG["messages"], max_tokens=3, stream=True
        )
        chunks = list(stream)
        resume.join()
    assert chunks[0].id == "axion-load"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_slow_load_that_fails_ends_the_stream_with_an_error_and_done(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, unloaded.http() as client:
        end = later(EARLY_STREAM_AFTER_S + 0.5, stalled.kill)
        with client.stream(
            "POST", "/v1/completions", json={"model": EXPERT, "prompt": "x", "stream": True}
        ) as answer:
            lines = [line for line in answer.iter_lines() if line]
        end.join()
    assert answer.status_code == 200
    error, done = _events(lines)
    assert json.loads(error)["error"]["code"] == "model_unavailable"
    assert done == "[DONE]"
    assert unloaded.expert(EXPERT)["state"] == "failed"
    _nothing_left(unloaded)


def test_a_refusal_after_a_slow_load_is_an_event_of_the_stream(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, unloaded.http() as client:
        resume = later(EARLY_STREAM_AFTER_S + 0.5, stalled.go_on)
        body = {**SHORT, "stream": True, "temperature": -5}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = [line for line in answer.iter_lines() if line]
        resume.join()
    assert answer.status_code == 200
    error, done = _events(lines)
    assert json.loads(error)["error"]["code"] == 400 and "temperature" in error
    assert done == "[DONE]"


def test_a_failed_load_is_503_with_the_time_of_the_next_try(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, unloaded.http() as client:
        end = later(0.5, stalled.kill)
        answer = client.post("/v1/chat/completions", json=SHORT)
        end.join()
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "model_unavailable"
        health = client.get("/health")
        assert health.status_code == 200, "the other expert can still be served"
    _until_answered(unloaded)
    assert unloaded.expert(EXPERT)["error"] is None


def test_waiting_requests_over_the_limit_get_429_and_the_others_an_answer(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, ThreadPoolExecutor(MAX_QUEUE) as pool:

        def ask() -> httpx.Response:
            return httpx.post(f"{unloaded.url}/v1/chat/completions", json=SHORT, timeout=60)

        waiting = [pool.submit(ask) for _ in range(MAX_QUEUE)]
        unloaded.wait_until(lambda: unloaded.expert(EXPERT)["queue"] == MAX_QUEUE, what="a full queue")
        refused = ask()
        stalled.go_on()
        answers = [future.result() for future in waiting]
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "queue_full"
    assert [a.status_code for a in answers] == [200] * MAX_QUEUE
    assert all(int(a.headers["x-axion-load-ms"]) > 0 for a in answers)


def test_own_endpoints_answer_while_a_model_loads(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled, unloaded.http() as client:
        client.post("/models/load", json={"model": EXPERT}).raise_for_status()
        stalled.wait()
        for path in ("/health", "/stats", "/v1/models", f"/v1/models/{EXPERT}", "/metrics", "/version"):
            assert client.get(path, timeout=5).status_code == 200
        card = client.get(f"/v1/models/{EXPERT}").json()
        assert card["status"]["value"] == "loading" and card["status"]["progress"]["stage"]
    unloaded.wait_for_state(EXPERT, "loaded")


# Clients that leave


def test_a_client_that_leaves_while_its_expert_loads_is_forgotten(unloaded: RunningServer) -> None:
    with stalled_load(unloaded) as stalled:
        with _connect(unloaded) as connection:
            _post(connection, LONG)
            stalled.wait()
            unloaded.wait_until(lambda: unloaded.expert(EXPERT)["queue"] == 1, what="the request to wait")
        unloaded.wait_until(lambda: unloaded.expert(EXPERT)["queue"] == 0, 5, "the queue to be empty")
        _nothing_left(unloaded)


def test_a_client_that_leaves_while_it_sends_is_forgotten(server: RunningServer) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
    before = len(server.log.read_text())
    for path in (b"/v1/chat/completions", b"/v1/route", b"/models/load"):
        with _connect(server) as connection:
            connection.sendall(head % path)
            time.sleep(0.2)
    _nothing_left(server)
    assert "Traceback" not in server.log.read_text()[before:]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_answer_is_made_stops_the_work(
    loaded: RunningServer, stream: bool
) -> None:
    made_before = loaded.expert(EXPERT)["tokens"]["out"]
    with _connect(loaded) as connection:
        _post(connection, {**LONG, "stream": stream})
        loaded.wait_until(lambda: _running(loaded), what="the request to run")
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    _nothing_left(loaded)
    time.sleep(0.3)
    made = loaded.expert(EXPERT)["tokens"]["out"] - made_before
    assert made < LONG["max_tokens"], "the engine worked on for nobody"


def test_a_client_that_leaves_during_prefill_is_forgotten(loaded: RunningServer) -> None:
    with _connect(loaded) as connection:
        _post(
            connection,
            {**LONG, "messages": [{"role": "user", "content": "a b c d " * 200}], "n": 8, "max_tokens": 20},
        )
    _nothing_left(loaded)
    _until_answered(loaded)


def test_many_clients_that_leave_at_random_times_leave_nothing_behind(loaded: RunningServer) -> None:
    def come_and_go(number: int) -> None:
        with _connect(loaded) as connection:
            _post(connection, {**LONG, "stream": number % 2 == 0})
            time.sleep(0.02 * number)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(come_and_go, range(36)))
    _nothing_left(loaded)
    _until_answered(loaded)


# Engines that die


# Each test has an expert of its own: one that dies again and again is loaded ever later.


def _kill_engine(server: RunningServer, expert_id: str) -> None:
    pid = server.expert(expert_id)["pid"]
    assert pid
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("path", "expert_id", "body"),
    [
        ("/v1/chat/completions", "phi4_fast", {"messages": LONG["messages"], "max_tokens": 900}),
        ("/v1/completions", "mistral_balanced", {"prompt": "x", "max_tokens": 900}),
        ("/v1/responses", "aya_expanse_multilingual", {"input": "x", "max_output_tokens": 900}),
        ("/v1/messages", "gemma3_multimodal", {"messages": LONG["messages"], "max_tokens": 900}),
    ],
)
def test_kill_9_of_an_engine_in_mid_stream_ends_the_stream_with_an_error(
    server: RunningServer, path: str, expert_id: str, body: dict[str, Any]
) -> None:
    _until_answered(server, expert_id)
    lines: list[str] = []
    with server.http() as client:
        request = {**body, "model": expert_id, "stream": True, "ignore_eos": True}
        with client.stream("POST", path, json=request, timeout=20) as answer:
            for line in answer.iter_lines():
                if len(lines) == 8:
                    _kill_engine(server, expert_id)
                lines.append(line)
        assert answer.status_code == 200
    errors = [e for e in _events(lines) if '"error"' in e and json.loads(e).get("error")]
    assert len(errors) == 1 and json.loads(errors[0])["error"]["message"]
    if path in ("/v1/chat/completions", "/v1/completions"):
        assert _events(lines)[-1] == "[DONE]"
    _nothing_left(server)
    assert server.expert(expert_id)["state"] == "failed"


def test_kill_9_of_an_engine_is_503_for_requests_that_do_not_stream_and_the_next_reloads(
    loaded: RunningServer,
) -> None:
    loads = loaded.expert(EXPERT)["loads"]
    with ThreadPoolExecutor(3) as pool, loaded.http() as client:
        asked = [pool.submit(client.post, "/v1/chat/completions", json=LONG) for _ in range(3)]
        loaded.wait_until(lambda: loaded.expert(EXPERT)["in_flight"] == 3, what="three requests")
        _kill_engine(loaded, EXPERT)
        answers = [future.result(timeout=20) for future in asked]
    for answer in answers:
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert answer.json()["error"]["code"] == "model_unavailable"
    _nothing_left(loaded)
    _until_answered(loaded)
    assert loaded.expert(EXPERT)["loads"] == loads + 1


# Bodies over the limit


def test_a_body_declared_too_large_is_413_before_it_is_read(server: RunningServer) -> None:
    with _connect(server) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()  # until the server hangs up
    assert answer.startswith("HTTP/1.1 413") and "request_too_large" in answer


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/route", "/models/load"])
def test_a_body_that_turns_out_too_large_is_413(server: RunningServer, path: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"prompt":"'
        for _ in range(1 + MAX_BODY // 1024):
            yield b"x" * 1024
        yield b'"}'

    with server.http() as client:
        answer = client.post(path, content=chunks(), headers={"content-type": "application/json"})
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    assert "transfer-encoding" in answer.request.headers


def test_a_body_at_the_limit_is_taken(server: RunningServer) -> None:
    raw = b'{"prompt":"x"}'.ljust(MAX_BODY)
    with server.http() as client:
        headers = {"content-type": "application/json"}
        assert client.post("/v1/route", content=raw, headers=headers).status_code == 200
        assert client.post("/v1/route", content=raw + b" ", headers=headers).status_code == 413


# Unknown things wake nobody


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "/%2e%2e/%2e%2e/etc/passwd", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/responses/resp_1", 405, "method_not_allowed"),
        ("POST", "/stats", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/phi4_fast", 405, "method_not_allowed"),
        ("GET", "/models/load", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods_wake_no_expert(
    unloaded: RunningServer, method: str, path: str, status: int, code: str
) -> None:
    loads = {e: s["loads"] for e, s in unloaded.get("/stats")["experts"].items()}
    with unloaded.http() as client:
        answer = client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status and answer.json()["error"]["code"] == code
    assert (status == 405) == ("allow" in answer.headers)
    assert {e: s["loads"] for e, s in unloaded.get("/stats")["experts"].items()} == loads
    assert unloaded.expert(EXPERT)["state"] == "unloaded"


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/realtime?model=unknown"])
def test_a_websocket_to_nowhere_is_closed_and_wakes_no_expert(unloaded: RunningServer, path: str) -> None:
    with _connect(unloaded) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        connection.sendall((head + key).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 403")
    assert unloaded.expert(EXPERT)["state"] == "unloaded"


def test_a_request_that_is_refused_wakes_no_expert(unloaded: RunningServer) -> None:
    image = {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}
    bodies: list[Any] = [
        {"model": EXPERT, "messages": [{"role": "user", "content": [image]}]},
        {"model": 5},
        [],
        {"model": "unknown", "messages": []},
    ]
    with unloaded.http() as client:
        for body in bodies:
            assert client.post("/v1/chat/completions", json=body).status_code in (400, 404)
    assert unloaded.expert(EXPERT)["state"] == "unloaded"


def test_two_hundred_first_requests_share_the_server_without_losing_one(unloaded: RunningServer) -> None:
    statuses: list[int] = []
    lock = threading.Lock()
    loads = unloaded.expert(EXPERT)["loads"]

    def ask(_: int) -> None:
        answer = httpx.post(f"{unloaded.url}/v1/chat/completions", json=SHORT, timeout=60)
        with lock:
            statuses.append(answer.status_code)

    with ThreadPoolExecutor(50) as pool:
        list(pool.map(ask, range(200)))
    assert len(statuses) == 200 and set(statuses) <= {200, 429} and statuses.count(200) >= MAX_QUEUE
    assert unloaded.expert(EXPERT)["loads"] == loads + 1
    _nothing_left(unloaded)
