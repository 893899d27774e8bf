# SPDX-License-Identifier: Apache-2.0
"""Who may do what: keys and scopes in front of an app.."""

from __future__ import annotations

import os
import subprocess
import sys

import httpx
import pytest
from prometheus_client import generate_latest
from starlette.types import Message, Receive, Scope, Send

from vllm_axion.serving.access import OPERATOR_PATHS, AccessControl, AccessKey
from vllm_axion.serving.metrics import ServerMetrics

INFERENCE, ADMIN, BOTH = "inference-key", "admin-key", "both-key"
KEYS = [
    AccessKey(INFERENCE, frozenset({"inference"})),
    AccessKey(ADMIN, frozenset({"admin"})),
    AccessKey(BOTH, frozenset({"inference", "admin"})),
]


async def _behind(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"let in"})


def _client(
    keys: list[AccessKey], metrics: ServerMetrics | None = None, root_path: str = ""
) -> httpx.AsyncClient:
    app = AccessControl(_behind, keys, metrics or ServerMetrics({}))
    transport = httpx.ASGITransport(app=app, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url=f"http://server{root_path}")


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_without_keys_everything_is_open() -> None:
    async with _client([]) as client:
        for path in ("/health", "/stats", "/v1/chat/completions", "/models/unload"):
            assert (await client.post(path)).status_code == 200


async def test_health_needs_no_key_and_everything_else_does() -> None:
    async with _client(KEYS) as client:
        assert (await client.get("/health")).status_code == 200
        for path in (
            "/stats",
            "/metrics",
            "/v1/models",
            "/tokenize",
            "/models/sse",
            "/health/",
            "/healthy",
            "//health",
        ):
            answer = await client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("path", "opened_by"),
    [
        ("/v1/chat/completions", {INFERENCE, BOTH}),
        ("/v1/models", {INFERENCE, BOTH}),
        ("/tokenize", {INFERENCE, BOTH}),
        ("/invocations", {INFERENCE, BOTH}),
        ("/inference/v1/generate", {INFERENCE, BOTH}),
        ("/models/load", {ADMIN, BOTH}),
        ("/models/unload", {ADMIN, BOTH}),
        ("/models/sse", {ADMIN, BOTH}),
        ("/collective_rpc", {ADMIN, BOTH}),
        ("/v1/load_lora_adapter", {ADMIN, BOTH}),
        ("/models", {INFERENCE, ADMIN, BOTH}),
        ("/stats", {INFERENCE, ADMIN, BOTH}),
        ("/metrics", {INFERENCE, ADMIN, BOTH}),
    ],
)
@pytest.mark.parametrize("root_path", ["", "/behind/a/proxy"])
async def test_a_key_opens_its_scopes_and_no_more(path: str, opened_by: set[str], root_path: str) -> None:
    async with _client(KEYS, root_path=root_path) as client:
        for key in (INFERENCE, ADMIN, BOTH):
            answer = await client.post(path, headers=_bearer(key))
            assert answer.status_code == (200 if key in opened_by else 403), key
            if answer.status_code == 403:
                assert answer.json()["error"]["code"] == "insufficient_scope"


async def test_health_is_open_behind_a_prefix_too() -> None:
    async with _client(KEYS, root_path="/prefix") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/stats")).status_code == 401


@pytest.mark.parametrize(
    "headers",
    [_bearer(BOTH), {"authorization": f"bearer   {BOTH}"}, {"x-api-key": BOTH}],
    ids=["bearer", "lower case and blanks", "x-api-key"],
)
async def test_a_key_may_come_in_either_header(headers: dict[str, str]) -> None:
    async with _client(KEYS) as client:
        assert (await client.get("/stats", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "given", ["", "x", BOTH[:-1], BOTH + "x", BOTH.upper(), "Basic " + BOTH, "ключ", "\x7f" * 10_000]
)
async def test_a_wrong_key_is_refused_without_saying_how_wrong(given: str) -> None:
    async with _client(KEYS) as client:
        raw = [(b"authorization", b"Bearer " + given.encode())]
        answer = await client.get("/stats", headers=raw)
    assert answer.status_code == 401
    assert BOTH not in answer.text and (not given or given not in answer.text)


async def test_refusals_are_counted() -> None:
    metrics = ServerMetrics({})
    async with _client(KEYS, metrics) as client:
        await client.get("/stats")
        await client.get("/models/sse", headers=_bearer(INFERENCE))
    assert b'vllm_axion:rejections_total{reason="unauthorized"} 2.0' in generate_latest(metrics.registry)


async def test_a_websocket_without_key_is_closed_before_it_opens() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "query_string": b""}
    await AccessControl(_behind, KEYS, ServerMetrics({}))(scope, receive, send)
    assert [(m["type"], m["code"]) for m in sent] == [("websocket.close", 1008)]


def test_no_route_of_vllms_operators_opens_to_an_inference_key() -> None:
    code = (
        "from vllm_axion.serving.engine_options import serve_parser\n"
        "from vllm_axion.serving.expert_engine import build_catalog_app\n"
        "args = serve_parser().parse_args(['--enable-fault-tolerance'])\n"
        "for route in build_catalog_app(args).routes:\n"
        "    print(getattr(getattr(route, 'endpoint', None), '__module__', ''), route.path)\n"
    )
    flags = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **flags}
    )
    assert done.returncode == 0, done.stderr
    routes = [line.split(" ") for line in done.stdout.splitlines() if line.startswith("vllm.entrypoints.")]
    kinds = tuple(f"serve.{kind}." for kind in ("dev", "lora", "profile", "elastic_ep", "fault_tolerance"))
    operators = {
        path
        for module, path in routes
        if module.removeprefix("vllm.entrypoints.").startswith((*kinds, "rl."))
    }
    assert {"/collective_rpc", "/update_weights", "/v1/load_lora_adapter"} <= operators, "the test sees them"
    assert operators <= OPERATOR_PATHS
