# SPDX-License-Identifier: Apache-2.0
"""What trips vLLM's own code is answered 400, not 500; what goes wrong in an engine is not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.serving.running_server import RunningServer
from vllm_axion.serving.content_faults import refuse_odd_content

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


@pytest.mark.parametrize(
    "error", [AttributeError("x"), KeyError("x"), IndexError(), RecursionError(), NotImplementedError()]
)
@pytest.mark.parametrize(("engine_failed", "status"), [(False, 400), (True, 500)])
@pytest.mark.parametrize("built", [False, True])
async def test_an_error_of_odd_content_is_the_clients_unless_the_engine_failed(
    error: Exception, engine_failed: bool, status: int, built: bool
) -> None:
    async def endpoint(request: Request) -> Response:
        raise error

    app = Starlette(routes=[Route("/", endpoint)])
    if built:  # as vLLM hands it over
        app.middleware_stack = app.build_middleware_stack()
    refuse_odd_content(app, "expert", lambda: engine_failed)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        answer = await client.get("/")
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


async def test_an_error_of_the_engine_stays_vllms_own() -> None:
    from vllm.v1.engine.exceptions import EngineGenerateError

    async def endpoint(request: Request) -> Response:
        raise EngineGenerateError

    app = Starlette(routes=[Route("/", endpoint)])
    refuse_odd_content(app, "expert", lambda: False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        with pytest.raises(EngineGenerateError):
            await client.get("/")


def _part(kind: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, "image_url": {"url": PIXEL}}]}]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "gemma3_multimodal", "messages": _part(["image_url"])},
        {"model": "gemma3_multimodal", "messages": _part({})},
        {
            "model": "gemma3_multimodal",
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": [PIXEL]}}]}],
        },
        {
            "model": "phi4_fast",
            "messages": [{"role": "user", "content": "a"}],
            "structured_outputs": ["x", 5e-324],
        },
    ],
)
def test_bodies_that_fuzzing_found_are_bad_requests(server: RunningServer, fields: dict[str, Any]) -> None:
    with server.http() as client:
        answer = client.post("/v1/chat/completions", json={**fields, "max_tokens": 1})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_refused_picture_does_not_spoil_it_for_the_next_client(server: RunningServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": PIXEL}, "uuid": "seen-before"}

    def body(text: str) -> dict[str, Any]:
        content = [{"type": "text", "text": text}, picture]
        messages = [{"role": "user", "content": content}]
        return {"model": "gemma3_multimodal", "messages": messages, "max_tokens": 1}

    with server.http() as client:
        refused = client.post("/v1/chat/completions", json=body("far too long " * 4000))
        assert refused.status_code == 400, refused.text
        answer = client.post("/v1/chat/completions", json=body("What is this?"))
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) == 1
            answer = client.post("/v1/chat/completions", json=body("What is this?"))
        assert answer.status_code == 200, answer.text


async def test_a_request_the_engine_gave_up_may_be_sent_again() -> None:
    from vllm.exceptions import GenerationError

    async def endpoint(request: Request) -> Response:
        raise GenerationError

    app = Starlette(routes=[Route("/", endpoint)])
    refuse_odd_content(app, "expert", lambda: False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
        answer = await client.get("/")
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
