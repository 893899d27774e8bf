# SPDX-License-Identifier: Apache-2.0
import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_fastapi_instrumentator import Instrumentator
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from vllm_axion.serving.http_metrics import HttpMetrics


def expert_app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models/{model_id}")
    async def model(model_id: str) -> PlainTextResponse:
        return PlainTextResponse(model_id)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        return StreamingResponse(parts())

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    return app


def client(app: HttpMetrics) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")


def count(app: HttpMetrics, **labels: str) -> float | None:
    for metric in app.collect():
        for sample in metric.samples:
            if sample.name == "http_requests_total" and sample.labels == labels:
                return sample.value
    return None


async def test_paths_are_counted_by_their_template() -> None:
    app = HttpMetrics(expert_app())
    async with client(app) as http:
        for model_id in ("a", "b", "c"):
            assert (await http.get(f"/v1/models/{model_id}")).text == model_id
    assert count(app, method="GET", status="2xx", handler="/v1/models/{model_id}") == 3


async def test_requests_of_every_expert_are_counted_also_after_a_reload() -> None:
    experts = {"a": expert_app(), "b": expert_app()}

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        expert_id = dict(scope["headers"])[b"x-expert"].decode()
        await experts[expert_id](scope, receive, send)

    app = HttpMetrics(outer)
    async with client(app) as http:
        await http.get("/stream", headers={"x-expert": "a"})
        await http.get("/stream", headers={"x-expert": "b"})
        experts["a"] = expert_app()
        await http.get("/stream", headers={"x-expert": "a"})
    assert count(app, method="GET", status="2xx", handler="/stream") == 3


async def test_clients_cannot_add_series() -> None:
    app = HttpMetrics(expert_app())
    async with client(app) as http:
        await http.get("/v1/models/a")
        await http.request("FOO0", "/nowhere/0")
        before = generate_latest(app).count(b"\n")
        for n in range(1, 20):
            await http.get(f"/v1/models/{n}")
            await http.request(f"FOO{n}", f"/nowhere/{n}")
    assert generate_latest(app).count(b"\n") == before
    assert count(app, method="other", status="4xx", handler="none") == 20


async def test_an_app_that_raises_is_a_server_error() -> None:
    app = HttpMetrics(expert_app())
    async with client(app) as http:
        await http.get("/broken")
    assert count(app, method="GET", status="5xx", handler="/broken") == 1


async def test_machine_questions_are_not_counted() -> None:
    app = HttpMetrics(PlainTextResponse("healthy"))
    async with client(app) as http:
        assert (await http.get("/health")).text == "healthy"
        assert (await http.get("/healthy")).text == "healthy"
    assert count(app, method="GET", status="2xx", handler="none") == 1


async def test_a_client_that_left_before_the_answer_is_no_server_error() -> None:
    waiting = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        waiting.set()
        await asyncio.sleep(60)

    app = HttpMetrics(slow)
    async with client(app) as http:
        request = asyncio.create_task(http.get("/v1/models"))
        await waiting.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    assert count(app, method="GET", status="4xx", handler="none") == 1


async def test_the_instrumentator_of_a_second_app_still_counts_nothing() -> None:
    # Once this fails, apps no longer need to be counted from outside.
    registry = CollectorRegistry()
    for app in (expert_app(), expert_app()):
        Instrumentator(registry=registry).instrument(app)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            await http.get("/stream")
    labels = {"method": "GET", "status": "2xx", "handler": "/stream"}
    assert registry.get_sample_value("http_requests_total", labels) == 1
