# SPDX-License-Identifier: Apache-2.0
"""Spans of requests as a receiver gets them; the server's own are in `test_watching.py`."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from tests.serving.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_grpc_receiver, otlp_receiver
from vllm_axion import compat
from vllm_axion.serving import tracing
from vllm_axion.serving.errors import CannotLoadNowError
from vllm_axion.serving.tracing import OtlpTracing, Tracing, start_tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
PROMPT = "the secret of the house"
FACTS = {"expert": "coder", "domain": "coding", "confidence": 0.9, "request_id": "r1", "prompt": [PROMPT]}


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with otlp_receiver() as listening:
        yield listening


@pytest.fixture(scope="module")
def traced(receiver: OtlpReceiver) -> Tracing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        # One provider a process: the other tests must neither meet this one nor vLLM's changed table.
        patch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: None)
        patch.setattr(compat, "share_tracer_provider", lambda provider: True)
        traced = OtlpTracing(receiver.endpoint)
    return traced


def scope(**headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": f"/v1/{PROMPT}", "headers": raw}


def sent(traced: Tracing, receiver: OtlpReceiver, trace_id: str) -> dict[str, ReceivedSpan]:
    traced.close()
    return receiver.of_trace(trace_id)


def test_steps_are_children_of_the_request_and_the_request_of_the_client(
    traced: Tracing, receiver: OtlpReceiver
) -> None:
    asked = scope(traceparent=TRACEPARENT)
    request = traced.request(asked)
    with request.step("axion.route"):
        pass
    with request.step("axion.generate"):
        pass
    request.end(asked, FACTS, 200)
    spans = sent(traced, receiver, TRACE)
    assert spans["axion.request"].parent_id == PARENT
    for name in ("axion.route", "axion.generate"):
        assert spans[name].parent_id == spans["axion.request"].span_id
    assert spans["axion.request"].service == "vllm-axion"


def test_vllm_is_handed_the_step_under_way_and_nothing_of_the_clients_context(
    traced: Tracing, receiver: OtlpReceiver
) -> None:
    asked = scope(traceparent=TRACEPARENT, tracestate="vendor=1", accept="*/*")
    request = traced.request(asked)
    with request.step("axion.generate"):
        handed = dict(request.propagate(asked["headers"]))
    request.end(asked, {}, 200)
    span = sent(traced, receiver, TRACE)["axion.generate"]
    assert handed[b"traceparent"] == f"00-{TRACE}-{span.span_id}-01".encode()
    assert handed[b"tracestate"] == b"vendor=1"
    assert handed[b"accept"] == b"*/*"
    assert [name for name, _ in request.propagate(asked["headers"])].count(b"traceparent") == 1


def test_a_span_holds_neither_prompt_nor_path(traced: Tracing, receiver: OtlpReceiver) -> None:
    trace_id = "1" * 32
    asked = scope(traceparent=f"00-{trace_id}-{PARENT}-01")
    request = traced.request(asked)
    with pytest.raises(ValueError, match=PROMPT), request.step("axion.route"):
        raise ValueError(PROMPT)
    request.end(asked, FACTS, 500)
    spans = sent(traced, receiver, trace_id)
    assert spans["axion.request"].attributes == {
        "axion.expert": "coder",
        "axion.domain": "coding",
        "axion.confidence": 0.9,
        "axion.request_id": "r1",
        "http.request.method": "POST",
        "http.response.status_code": 500,
    }
    assert spans["axion.request"].failed
    assert PROMPT.encode() not in receiver.raw


def test_a_step_that_fails_tells_the_kind_of_error(traced: Tracing, receiver: OtlpReceiver) -> None:
    trace_id = "2" * 32
    asked = scope(traceparent=f"00-{trace_id}-{PARENT}-01")
    request = traced.request(asked)
    with pytest.raises(CannotLoadNowError), request.step("axion.load"):
        raise CannotLoadNowError("no room")
    request.end(asked, {}, 503)
    load = sent(traced, receiver, trace_id)["axion.load"]
    assert load.failed
    assert load.attributes == {"error.type": "model_unavailable"}


def test_a_client_that_does_not_sample_is_not_traced(traced: Tracing, receiver: OtlpReceiver) -> None:
    trace_id = "3" * 32
    asked = scope(traceparent=f"00-{trace_id}-{PARENT}-00")
    request = traced.request(asked)
    with request.step("axion.generate"):
        handed = dict(request.propagate(asked["headers"]))
    request.end(asked, FACTS, 200)
    assert sent(traced, receiver, trace_id) == {}
    assert handed[b"traceparent"].endswith(b"-00")


def test_grpc_is_what_is_spoken_unless_told_otherwise(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(compat, "share_tracer_provider", lambda provider: True)
    trace_id = "4" * 32
    with otlp_grpc_receiver(receiver) as endpoint:
        asked = scope(traceparent=f"00-{trace_id}-{PARENT}-01")
        by_grpc = OtlpTracing(endpoint)
        by_grpc.request(asked).end(asked, FACTS, 200)
        assert sent(by_grpc, receiver, trace_id)["axion.request"].attributes["axion.expert"] == "coder"


def test_a_receiver_that_does_not_answer_does_not_keep_the_server_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    monkeypatch.setattr("opentelemetry.trace.set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(compat, "share_tracer_provider", lambda provider: True)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traced = OtlpTracing(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/traces")
        asked = scope()
        traced.request(asked).end(asked, FACTS, 200)
        closing = threading.Thread(target=traced.close, daemon=True)
        closing.start()
        closing.join(2 * tracing._FLUSH_TAKES_S)
        assert not closing.is_alive()


def test_a_protocol_there_is_none_of_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json")
    with pytest.raises(ValueError, match="http/json: must be grpc or http/protobuf"):
        tracing.span_exporter("http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize(
    ("protocol", "endpoint", "module"),
    [
        (None, "http://127.0.0.1:4317", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"),
        ("grpc", "127.0.0.1:4317", "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"),
        ("http/protobuf", "http://127.0.0.1:4318/v1/traces", "opentelemetry.exporter.otlp.proto.http"),
    ],
)
def test_the_exporter_follows_vllms_variable(
    monkeypatch: pytest.MonkeyPatch, protocol: str | None, endpoint: str, module: str
) -> None:
    if protocol is None:
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", raising=False)
    else:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol)
    exporter = tracing.span_exporter(endpoint)
    assert type(exporter).__module__.startswith(module)
    exporter.shutdown()


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys; from vllm_axion.serving.tracing import start_tracing\n"
        "trace = start_tracing(None).request({'headers': []})\n"
        "with trace.step('axion.route'): pass\n"
        "assert trace.propagate([(b'traceparent', b'x')]) == [(b'traceparent', b'x')]\n"
        "trace.end({}, {}, 200)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert type(start_tracing(None)) is Tracing


def test_engines_share_one_provider_however_often_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm.tracing

    monkeypatch.setattr(
        vllm.tracing, "_REGISTERED_TRACING_BACKENDS", dict(vllm.tracing._REGISTERED_TRACING_BACKENDS)
    )
    provider = TracerProvider(shutdown_on_exit=False)
    assert compat.share_tracer_provider(provider)
    threads = threading.active_count()
    tracers = [vllm.tracing.init_tracer("vllm.llm_engine", "http://127.0.0.1:9") for _ in range(5)]
    assert threading.active_count() == threads
    assert all(tracer.resource is provider.resource for tracer in tracers)
    assert compat.share_tracer_provider(provider), "harmless twice"
