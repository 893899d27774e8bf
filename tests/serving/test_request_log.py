# SPDX-License-Identifier: Apache-2.0
"""One line for every request, under an id."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_axion.serving.config import MultiModelConfig
from vllm_axion.serving.gateway import Gateway
from vllm_axion.serving.log_stream import as_fields
from vllm_axion.serving.metrics import ServerMetrics
from vllm_axion.serving.request_log import RequestLog, about, shortened


async def coder(scope: Scope, receive: Receive, send: Send) -> None:
    about(scope)["expert"] = "coder"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def ask(app: ASGIApp, path: str = "/v1/x", **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers=headers)


async def test_the_line_says_what_how_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.requests")
    answer = await ask(RequestLog(coder), **{"x-request-id": "mine-1"})
    (line,) = caplog.records
    fields = vars(line)["fields"]
    assert answer.headers["x-request-id"] == "mine-1" == fields["request_id"]
    assert (fields["status"], fields["method"], fields["path"]) == (200, "GET", "/v1/x")
    assert fields["ms"] >= 0
    assert vars(line)["expert"] == "coder"


@pytest.mark.parametrize("unsound", ["two words", "x" * 129, "a\tb", "<script>"])
async def test_an_unsound_id_is_replaced(unsound: str) -> None:
    answer = await ask(RequestLog(coder), **{"x-request-id": unsound})
    assert answer.headers["x-request-id"] != unsound
    assert len(answer.headers["x-request-id"]) == 32


async def test_every_request_has_an_id_of_its_own() -> None:
    app = RequestLog(coder)
    assert (await ask(app)).headers["x-request-id"] != (await ask(app)).headers["x-request-id"]


async def test_what_machines_ask_every_second_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.requests")
    await ask(RequestLog(coder), "/health")
    assert not caplog.records


async def test_a_path_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.requests")
    await ask(RequestLog(coder), "/v1/x%0A12:00:00%20INFO%20forged")
    assert "\n" not in caplog.records[0].getMessage()


async def test_switched_off_it_still_gives_ids(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.requests")
    answer = await ask(RequestLog(coder, enabled=False))
    assert answer.headers["x-request-id"]
    assert not caplog.records


async def test_a_client_that_left_before_the_answer_is_499(caplog: pytest.LogCaptureFixture) -> None:
    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        return

    caplog.set_level(logging.INFO, "vllm_axion.requests")
    scope: Scope = {"type": "http", "method": "GET", "path": "/v1/x", "headers": []}

    async def nothing(*_: object) -> dict[str, str]:
        return {"type": "http.disconnect"}

    await RequestLog(silent)(scope, nothing, nothing)  # type: ignore[arg-type]
    assert vars(caplog.records[0])["fields"]["status"] == 499


class _Broken:
    """Anything the gateway is made of; asking it for something is a fault of the server."""

    def match(self, scope: Scope) -> None:
        raise RuntimeError("a fault")


async def test_a_fault_of_the_server_is_logged_under_the_id_the_client_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = MultiModelConfig.from_data(
        {"experts": [{"expert_id": "coder", "model_path": "a/b"}]}, base_dir=Path("/")
    )
    broken: Any = _Broken()
    gateway = Gateway(config, broken, broken, broken, ServerMetrics({}))
    answer = await ask(RequestLog(gateway, enabled=False), path="/v1/x%0a12:00:00 INFO forged")
    assert answer.status_code == 500
    assert "a fault" not in answer.text
    (line,) = [as_fields(record) for record in caplog.records if record.levelname == "ERROR"]
    assert line["request_id"] == answer.headers["x-request-id"]
    assert "\n" not in line["message"]


def test_a_logged_prompt_holds_no_megabytes() -> None:
    picture = "data:image/png;base64," + "A" * 5_000_000
    logged = shortened([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]}])
    assert len(str(logged)) < 5000
    assert shortened([{"role": "user", "content": "Hola"}]) == [{"role": "user", "content": "Hola"}]
    assert len(shortened([{"role": "user", "content": str(n)} for n in range(1000)])) <= 20
