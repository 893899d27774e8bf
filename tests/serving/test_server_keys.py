# SPDX-License-Identifier: Apache-2.0
"""Keys from every place they may come from, on a running server that stands behind a prefix."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.serving.running_server import RunningServer, StartServer

AT_ONCE = 2
FROM_FLAG, FROM_FILE, FROM_ENV, IN_CONFIG = "k-flag", "k-file", "k-env", "k-config"


@pytest.fixture(scope="module")
def server(start_server: StartServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    key_file = tmp_path_factory.mktemp("keys") / "admin.key"
    key_file.write_text(FROM_FILE + "\n")
    key_file.chmod(0o600)
    keys = [
        {"key": IN_CONFIG, "scopes": ["inference"]},
        {"key_env": "TEST_SERVER_KEY", "scopes": ["inference", "admin"]},
        {"key_file": str(key_file), "scopes": ["admin"]},
    ]
    server = start_server(
        "--api-key",
        FROM_FLAG,
        "--root-path",
        "/llm",
        environment={"TEST_SERVER_KEY": FROM_ENV},
        only=["phi4_fast"],
        lazy_loading={"warmup_pool_size": 0},
        limits={"max_concurrent_requests": AT_ONCE},
        server={"api_keys": keys, "cors_origins": ["https://app.example"]},
    )
    yield server
    server.stop()


def _get(server: RunningServer, path: str, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.get(f"{server.url}{path}", headers=headers, timeout=30)


def _post(server: RunningServer, path: str, key: str | None, body: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}{path}", headers=headers, json=body, timeout=60)


@pytest.mark.parametrize("key", [FROM_FLAG, FROM_ENV, IN_CONFIG])
def test_the_official_client_chats_with_a_key_from_any_source(server: RunningServer, key: str) -> None:
    answer = server.openai(key).chat.completions.create(
        model="phi4_fast", messages=[{"role": "user", "content": "Hola"}], max_tokens=1
    )
    assert answer.model == "phi4_fast"


def test_a_wrong_key_is_401(server: RunningServer) -> None:
    for key in ("wrong", "", FROM_FLAG + "x"):
        with pytest.raises(openai.AuthenticationError) as refused:
            server.openai(key or "none").models.list()
        assert refused.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "path", ["/stats", "/metrics", "/v1/models", "/models/sse", "/docs", "/version", "/v1/nothing"]
)
def test_without_a_key_nothing_but_health_answers(server: RunningServer, path: str) -> None:
    assert _get(server, "/health", None).status_code == 200
    assert _get(server, path, None).status_code == 401


def test_an_inference_key_may_not_administrate_and_an_admin_key_may_not_chat(server: RunningServer) -> None:
    load = {"model": "phi4_fast"}
    refused = _post(server, "/models/load", IN_CONFIG, load)
    assert refused.status_code == 403 and refused.json()["error"]["code"] == "insufficient_scope"
    for key in (FROM_FILE, FROM_ENV, FROM_FLAG):
        assert _post(server, "/models/load", key, load).status_code == 200
    for path in ("/v1/chat/completions", "/tokenize"):
        assert _post(server, path, FROM_FILE, {"prompt": "x"}).status_code == 403
    assert _get(server, "/stats", FROM_FILE).status_code == 200


def test_no_key_is_ever_shown(server: RunningServer) -> None:
    shown = server.log.read_text()
    for path in ("/stats", "/metrics", "/openapi.json", "/v1/models"):
        shown += _get(server, path, FROM_ENV).text
    for key in (FROM_FLAG, FROM_FILE, FROM_ENV, IN_CONFIG):
        assert key not in shown


def test_more_requests_at_once_than_allowed_are_429(server: RunningServer) -> None:
    story = {"model": "phi4_fast", "prompt": "x", "max_tokens": 600, "ignore_eos": True}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [pool.submit(_post, server, "/v1/completions", FROM_ENV, story) for _ in range(AT_ONCE)]
        server.wait_until(lambda: _get(server, "/load", FROM_ENV).json() == {"server_load": AT_ONCE}, 20)
        refused = _post(server, "/v1/completions", FROM_ENV, story)
        health = _get(server, "/health", None)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
    assert refused.headers["retry-after"] and health.status_code == 200
    assert [future.result().status_code for future in asked] == [200] * AT_ONCE


def test_configured_sites_may_ask_from_a_browser_and_others_not(server: RunningServer) -> None:
    def preflight(origin: str) -> httpx.Response:
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type",
        }
        return httpx.options(f"{server.url}/v1/chat/completions", headers=headers)

    assert preflight("https://app.example").headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in preflight("https://evil.example").headers
    answer = httpx.get(f"{server.url}/health", headers={"origin": "https://app.example"})
    shown = answer.headers["access-control-expose-headers"]
    assert {"x-axion-expert", "x-axion-confidence", "x-request-id"} <= set(shown.split(", "))
