# SPDX-License-Identifier: Apache-2.0
"""Spans of every request for OpenTelemetry, when `--otlp-traces-endpoint` asks for them.

    axion.request                     from the first byte of the request to the last of the answer
      axion.route                     which expert
      axion.load                      only if the request waited for its expert
      axion.generate                  vLLM's app of the expert
        llm_request                   vLLM's own span, with its token counts and times

The client's ``traceparent`` header is the parent of the first; vLLM gets its own from the header it is
handed. No span ever holds a prompt, an answer or a path the client made up. Parents are given by hand, never
by a context variable: vLLM's output task lives in the context of whichever request came first.

Without the option nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

from starlette.datastructures import Headers
from starlette.types import Scope

from vllm_axion import compat
from vllm_axion.serving.errors import ServingError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

Step = Literal["axion.route", "axion.load", "axion.generate"]
RawHeaders = list[tuple[bytes, bytes]]

SERVICE_NAME = "vllm-axion"
"""``service.name`` of the spans, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says otherwise."""

_PROTOCOL = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
_PROPAGATED = (b"traceparent", b"tracestate")
_FLUSH_TAKES_S = 3.0

_ATTRIBUTES = {
    "expert": "axion.expert",
    "domain": "axion.domain",
    "confidence": "axion.confidence",
    "chosen": "axion.chosen",
    "load_ms": "axion.load_ms",
    "stream": "axion.stream",
    "request_id": "axion.request_id",
}
"""What a span takes over from the facts of the request log. A list of what may, not of what may not: the
facts can hold the prompt.
"""


class RequestTrace:
    """The spans of one request. This one, for a server without tracing, keeps none."""

    def step(self, name: Step) -> AbstractContextManager[None]:
        """A part of the request, as a context. Steps follow each other; they do not nest."""
        return nullcontext()

    def propagate(self, headers: RawHeaders) -> RawHeaders:
        """Headers for vLLM's app, with the step under way as the parent of what happens there."""
        return headers

    def end(self, scope: Scope, facts: Mapping[str, Any], status: int) -> None:
        """The request is over: ``facts`` as in its log line, ``status`` of HTTP (499: the client left)."""


class Tracing:
    """Makes the spans of requests. This one, for a server without tracing, makes none."""

    def request(self, scope: Scope) -> RequestTrace:
        """Begin the spans of a request."""
        return _UNTRACED

    def close(self) -> None:
        """Send what has not been sent yet. May take some seconds; belongs in a thread."""


_UNTRACED = RequestTrace()


class OtlpTracing(Tracing):
    """Spans sent by OTLP.

    Args:
        endpoint: where to; ``host:port`` or a URL for gRPC, the whole URL for HTTP, as with vLLM.

    Raises:
        ValueError: OTEL_EXPORTER_OTLP_TRACES_PROTOCOL names a protocol there is none of.
    """

    def __init__(self, endpoint: str) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        resource = Resource.create({} if named else {"service.name": SERVICE_NAME})
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(span_exporter(endpoint)))
        # The first provider of a process stays: vLLM's spans go through it as well.
        trace.set_tracer_provider(self._provider)
        compat.share_tracer_provider(self._provider)
        self._tracer = self._provider.get_tracer("vllm_axion")

    def request(self, scope: Scope) -> RequestTrace:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(Headers(scope=scope))
        span = self._tracer.start_span("axion.request", context=parent, kind=SpanKind.SERVER)
        return _SpanTrace(self._tracer, span)

    def close(self) -> None:
        # A receiver that does not answer must not keep the server from ending: the exporter alone would try
        # for longer than this.
        flush = threading.Thread(target=self._provider.force_flush, name="trace-flush", daemon=True)
        flush.start()
        flush.join(_FLUSH_TAKES_S)


class _SpanTrace(RequestTrace):
    def __init__(self, tracer: Any, span: Span) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracer
        self._span = span
        self._inside: Context = set_span_in_context(span)
        self._now: Context = self._inside

    @contextmanager
    def step(self, name: Step) -> Generator[None, None, None]:
        from opentelemetry.trace import set_span_in_context

        span: Span = self._tracer.start_span(name, context=self._inside)
        self._now = set_span_in_context(span)
        try:
            yield
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            self._now = self._inside
            span.end()

    def propagate(self, headers: RawHeaders) -> RawHeaders:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, self._now)
        kept = [(name, value) for name, value in headers if name not in _PROPAGATED]
        return [*kept, *((name.encode(), value.encode()) for name, value in carrier.items())]

    def end(self, scope: Scope, facts: Mapping[str, Any], status: int) -> None:
        from opentelemetry.trace import StatusCode

        for fact, attribute in _ATTRIBUTES.items():
            if facts.get(fact) is not None:
                self._span.set_attribute(attribute, facts[fact])
        # The route's template: the path itself is the client's words.
        if route := getattr(scope.get("route"), "path", None):
            self._span.set_attribute("http.route", route)
        self._span.set_attribute("http.request.method", scope["method"])
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


def _failed(span: Span, error: BaseException) -> None:
    """Mark a step that did not end well by the kind of the error: its text may quote the request."""
    from opentelemetry.trace import StatusCode

    kind = error.code if isinstance(error, ServingError) else type(error).__name__
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, kind)


def start_tracing(endpoint: str | None) -> Tracing:
    """Tracing for the value of `--otlp-traces-endpoint`. Call it before the first engine starts.

    Raises ValueError as `OtlpTracing` does.
    """
    return Tracing() if endpoint is None else OtlpTracing(endpoint)


def span_exporter(endpoint: str) -> SpanExporter:
    """The exporter vLLM would make for this endpoint, by the same environment variable."""
    protocol = os.environ.get(_PROTOCOL, "grpc")
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    if protocol == "http/protobuf":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

        return HttpExporter(endpoint=endpoint)
    raise ValueError(f"{_PROTOCOL}={protocol}: must be grpc or http/protobuf")
