# SPDX-License-Identifier: Apache-2.0
"""What an operator sees of a running server: log lines, the streams of each expert, the log file, spans.

Two servers: one as an operator sets it up who trusts nobody, one that traces requests and logs prompts.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.serving.otlp_receiver import OtlpReceiver, otlp_receiver
from tests.serving.running_server import RunningServer, StartServer

EXPERT, OTHER = "qwen_coder", "phi4_fast"
PROMPT = "The password of the vault is swordfish"
ADMIN = {"authorization": "Bearer admin-key-for-tests"}
INFERENCE = {"authorization": "Bearer inference-key-for-tests"}
KEYS = [
    {"key": "admin-key-for-tests", "scopes": ["admin"]},
    {"key": "inference-key-for-tests", "scopes": ["inference"]},
]
NOTHING_AHEAD = {"warmup_pool_size": 0, "auto_unload_after_s": 3600, "min_residency_s": 0}
CHAT: dict[str, Any] = {
    "model": EXPERT,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 2,
}

Line = dict[str, Any]


@dataclass
class Followed:
    """The lines of a log stream as they come, read in a thread."""

    lines: list[Line] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def having(self, **fields: Any) -> list[Line]:
        return [line for line in list(self.lines) if all(line.get(k) == v for k, v in fields.items())]

    def says(self, text: str) -> bool:
        return any(text in line["message"] for line in list(self.lines))


@contextmanager
def following(server: RunningServer, name: str) -> Generator[Followed, None, None]:
    followed = Followed()
    client = httpx.Client(base_url=server.url, headers=ADMIN, timeout=None)
    begun = threading.Event()

    def read() -> None:
        try:
            with client.stream("GET", f"/logs/stream/{name}") as answer:
                assert answer.status_code == 200, answer.read()
                begun.set()
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        followed.lines.append(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError:  # cut off by the end of the context
            return
        followed.ended.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert begun.wait(10)
    try:
        yield followed
    finally:
        client.close()


def chat(server: RunningServer, **changes: Any) -> httpx.Response:
    """A short chat with the expert; header `traceparent` and others by `headers`."""
    headers = {**INFERENCE, **changes.pop("headers", {})}
    with server.http() as client:
        return client.post("/v1/chat/completions", json={**CHAT, **changes}, headers=headers)


def unload(server: RunningServer, expert_id: str = EXPERT) -> None:
    with server.http() as client:
        client.post("/models/unload", json={"model": expert_id}, headers=ADMIN).raise_for_status()

        def gone() -> bool:
            stats = client.get("/stats", headers=ADMIN).json()
            return bool(stats["experts"][expert_id]["state"] == "unloaded")

        server.wait_until(gone, 60, f"{expert_id} unloaded")


# --- Logs: a server with keys, and a JSON log file ---------------------------------------------------


@pytest.fixture(scope="module")
def log_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "axion.log"


@pytest.fixture(scope="module")
def logged(start_server: StartServer, log_file: Path) -> RunningServer:
    return start_server(
        *("--log-file", str(log_file), "--log-format", "json"),
        environment={"VLLM_LOGGING_LEVEL": "INFO"},
        lazy_loading=NOTHING_AHEAD,
        server={"api_keys": KEYS},
        only=[EXPERT, OTHER],
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"authorization": "Bearer guessed"}, 401), (INFERENCE, 403), (ADMIN, 404)],
)
def test_log_streams_are_the_admins_alone(
    logged: RunningServer, headers: dict[str, str], status: int
) -> None:
    """404 is for the name: only who may read the streams learns which there are."""
    with logged.http() as client:
        answer = client.get("/logs/stream/nobody", headers=headers)
    assert answer.status_code == status
    assert (EXPERT in answer.text) == (status == 404)


def test_a_stream_tells_all_of_its_expert_and_nothing_of_others(logged: RunningServer) -> None:
    with following(logged, EXPERT) as followed, following(logged, OTHER) as other:
        answer = chat(logged)
        assert answer.status_code == 200, answer.text
        unload(logged)
        logged.wait_until(lambda: followed.says("unloading (requested)"), 10, "the last line")
        assert followed.says(f"{EXPERT}: loaded in ")
        requests = followed.having(logger="vllm_axion.requests", path="/v1/chat/completions")
        assert [line["request_id"] for line in requests] == [answer.headers["x-request-id"]]
        assert requests[0]["status"] == 200
        assert requests[0]["load_ms"] > 0
        assert {line["expert"] for line in followed.lines} == {EXPERT}
        assert other.lines == []


def test_what_an_engine_prints_is_in_its_stream(logged: RunningServer) -> None:
    chat(logged)
    with following(logged, EXPERT) as followed:
        printed = "the lines vLLM writes while it loads"
        logged.wait_until(lambda: len(followed.having(logger="vllm_axion.engine")) > 3, 10, printed)
        assert any("INFO" in line["message"] for line in followed.having(logger="vllm_axion.engine"))


def test_a_sound_id_of_the_client_is_the_one_in_the_log(logged: RunningServer) -> None:
    with following(logged, EXPERT) as followed:
        answer = chat(logged, headers={"x-request-id": "ticket-4711"})
        assert answer.headers["x-request-id"] == "ticket-4711"
        logged.wait_until(lambda: len(followed.having(request_id="ticket-4711")) == 1, 10, "its line")
        forged = chat(logged, headers={"x-request-id": "a b"}).headers["x-request-id"]
        assert forged != "a b"
        logged.wait_until(lambda: len(followed.having(request_id=forged)) == 1, 10, "its line")


def test_an_engine_that_dies_is_in_its_stream(logged: RunningServer) -> None:
    chat(logged)
    with logged.http() as client:
        pid = client.get("/stats", headers=ADMIN).json()["experts"][EXPERT]["pid"]
    with following(logged, EXPERT) as followed:
        os.kill(pid, signal.SIGKILL)
        said = f"the engine of {EXPERT} ended unexpectedly (exit code -9)"
        logged.wait_until(lambda: followed.says(said), 10, said)
        assert followed.having(level="error", logger="vllm_axion.experts")


def test_prompts_are_in_no_log_unless_asked_for(logged: RunningServer, log_file: Path) -> None:
    answer = chat(logged)
    assert answer.status_code == 200, answer.text
    with following(logged, EXPERT) as followed:
        written = answer.headers["x-request-id"]
        logged.wait_until(lambda: len(followed.having(request_id=written)) == 1, 10, "its line")
        assert followed.having(request_id=written)[0]["body_bytes"] > len(PROMPT)
        assert "swordfish" not in json.dumps(followed.lines)
    assert "swordfish" not in log_file.read_text("utf-8")


def test_streams_end_when_the_server_does(logged: RunningServer) -> None:
    with following(logged, EXPERT) as followed, following(logged, "server") as of_server:
        assert logged.stop() == 0
        assert followed.ended.wait(5) and of_server.ended.wait(5)
        assert of_server.says("stopping: ")


def test_every_line_of_the_file_is_json_and_every_field_is_explained(
    logged: RunningServer, log_file: Path, repository: Path
) -> None:
    logged.stop()
    guide = (repository / "docs" / "operations.md").read_text("utf-8")
    lines = [json.loads(line) for line in log_file.read_text("utf-8").splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert {name for line in lines for name in line if f"`{name}`" not in guide} == set()
    loggers = {line["logger"] for line in lines}
    assert {"vllm_axion.experts", "vllm_axion.requests", "vllm_axion.engine"} <= loggers
    assert lines[-1]["message"] == "stopped"
    assert any(line.get("request_id") == "ticket-4711" and line["status"] == 200 for line in lines)


def test_with_a_log_file_only_the_start_is_printed(logged: RunningServer) -> None:
    logged.stop()
    printed = logged.log.read_text("utf-8")
    assert "output goes to" in printed
    assert "loaded in" not in printed and "POST" not in printed


# --- Levels, spans, and prompts in the log: a server that is asked for them ---------------------------


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def traced(start_server: StartServer, receiver: OtlpReceiver) -> Iterator[RunningServer]:
    server = start_server(
        *("--otlp-traces-endpoint", receiver.endpoint),
        environment={
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        },
        lazy_loading=NOTHING_AHEAD,
        server={"log_prompts": True},
        only=[EXPERT, OTHER],
    )
    yield server
    assert server.stop() == 0


def traceparent(trace_id: str, span_id: str = "b7ad6b7169203331") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-{span_id}-01"}


def test_a_scrape_shows_levels_though_nobody_asked_for_stats(traced: RunningServer) -> None:
    """A Prometheus asks for nothing else."""

    def level(name: str, **labels: str) -> float:
        with traced.http() as client:
            page = client.get("/metrics").text
        samples = [s for family in parse_text(page) for s in family.samples]
        (found,) = [s.value for s in samples if s.name == f"vllm_axion:{name}" and s.labels == labels]
        return float(found)

    assert level("memory_limit_bytes") > level("memory_allowed_bytes") > 0
    assert level("memory_others_bytes") > 0
    assert level("memory_reserved_bytes") == 0
    assert level("expert_cores", expert=OTHER) == 0
    answer = chat(traced, model=OTHER)
    assert answer.status_code == 200, answer.text
    assert level("memory_reserved_bytes") > 0
    assert level("expert_cores", expert=OTHER) >= 1
    assert level("request_wait_seconds_count", expert=OTHER) == 1
    waited_ms = 1000 * level("request_wait_seconds_sum", expert=OTHER)
    assert waited_ms == pytest.approx(float(answer.headers["x-axion-load-ms"]), abs=2)
    unload(traced, OTHER)
    traced.wait_until(lambda: level("memory_reserved_bytes") == 0, 10, "nothing reserved")
    assert level("expert_cores", expert=OTHER) == 0


def test_spans_of_a_first_request_are_nested_down_to_vllm(
    traced: RunningServer, receiver: OtlpReceiver
) -> None:
    trace_id = "a" * 32
    answer = chat(traced, headers=traceparent(trace_id))
    assert answer.status_code == 200, answer.text
    traced.wait_until(lambda: len(receiver.of_trace(trace_id)) >= 5, 10, "five spans")
    spans = receiver.of_trace(trace_id)
    request = spans["axion.request"]
    assert request.parent_id == "b7ad6b7169203331"
    parents = {name: span.parent_id for name, span in spans.items()}
    for name in ("axion.route", "axion.load", "axion.generate"):
        assert parents[name] == request.span_id
        assert request.start <= spans[name].start <= spans[name].end <= request.end
    assert parents["llm_request"] == spans["axion.generate"].span_id
    assert spans["axion.route"].end <= spans["axion.load"].start
    assert spans["axion.load"].end <= spans["axion.generate"].start
    load_ms = (spans["axion.load"].end - spans["axion.load"].start) / 1e6
    assert request.attributes["axion.load_ms"] == pytest.approx(load_ms, abs=100)
    assert (
        request.attributes.items()
        >= {
            "axion.expert": EXPERT,
            "axion.domain": "coding",
            "axion.confidence": 1.0,
            "axion.chosen": "explicit",
            "axion.request_id": answer.headers["x-request-id"],
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
        }.items()
    )
    assert spans["llm_request"].attributes["gen_ai.usage.completion_tokens"] == 2


def test_a_request_that_waited_for_nothing_has_no_span_of_a_load(
    traced: RunningServer, receiver: OtlpReceiver
) -> None:
    trace_id = "b" * 32
    chat(traced).raise_for_status()
    with traced.http() as client:
        asked = {**CHAT, "model": "auto", "stream": True}
        answer = client.post("/v1/chat/completions", json=asked, headers=traceparent(trace_id))
    expert = answer.headers["x-axion-expert"]
    traced.wait_until(lambda: "axion.request" in receiver.of_trace(trace_id), 10, "the request's span")
    spans = receiver.of_trace(trace_id)
    assert ("axion.load" in spans) == (answer.headers["x-axion-load-ms"] != "0")
    assert spans["llm_request"].parent_id == spans["axion.generate"].span_id
    assert spans["axion.request"].attributes["axion.expert"] == expert
    assert spans["axion.request"].attributes["axion.chosen"] in ("routed", "abstained")
    assert spans["axion.request"].attributes["axion.stream"] is True


def test_a_refused_request_says_why_in_its_span(traced: RunningServer, receiver: OtlpReceiver) -> None:
    trace_id = "c" * 32
    assert chat(traced, model="gpt-4o", headers=traceparent(trace_id)).status_code == 404
    traced.wait_until(lambda: len(receiver.of_trace(trace_id)) == 2, 10, "two spans")
    spans = receiver.of_trace(trace_id)
    assert spans["axion.route"].attributes == {"error.type": "model_not_found"}
    assert spans["axion.request"].attributes["http.response.status_code"] == 404
    assert not spans["axion.request"].failed, "the client's fault is not the server's failure"


def test_prompts_are_logged_if_asked_for_and_traced_never(
    traced: RunningServer, receiver: OtlpReceiver
) -> None:
    trace_id = "d" * 32
    answer = chat(traced, headers=traceparent(trace_id))
    written = answer.headers["x-request-id"]
    with following(traced, EXPERT) as followed:
        traced.wait_until(lambda: len(followed.having(request_id=written)) == 1, 10, "its line")
        assert followed.having(request_id=written)[0]["prompt"] == CHAT["messages"]
    traced.wait_until(lambda: "axion.request" in receiver.of_trace(trace_id), 10, "its span")
    assert EXPERT.encode() in receiver.raw
    assert b"swordfish" not in receiver.raw


def test_spans_go_on_after_a_reload_and_the_last_ones_are_sent_at_the_end(
    traced: RunningServer, receiver: OtlpReceiver
) -> None:
    chat(traced).raise_for_status()
    unload(traced)
    trace_id = "e" * 32
    chat(traced, headers=traceparent(trace_id)).raise_for_status()
    assert traced.stop() == 0
    spans = receiver.of_trace(trace_id)
    assert spans["llm_request"].parent_id == spans["axion.generate"].span_id
    assert "axion.load" in spans
    ours = {"axion.request", "axion.route", "axion.load", "axion.generate"}
    of_vllm = {"llm_request", "Overall Loading", "AsyncMPClient init"}
    assert {span.name for span in receiver.spans} == ours | of_vllm
    assert {span.service for span in receiver.spans} == {"vllm-axion"}
