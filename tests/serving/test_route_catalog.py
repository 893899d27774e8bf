# SPDX-License-Identifier: Apache-2.0
"""Which paths exist, known before any expert is loaded."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from vllm_axion.serving.errors import MethodNotAllowedError, RouteNotFoundError
from vllm_axion.serving.expert_engine import build_catalog_app
from vllm_axion.serving.route_catalog import RouteCatalog, route_path


@pytest.fixture(scope="module")
def catalog() -> RouteCatalog:
    from vllm_axion.serving.engine_options import serve_parser
    from vllm_axion.serving.server_app import OWN_PATHS

    args = serve_parser().parse_args([])
    return RouteCatalog(build_catalog_app(copy.deepcopy(args)), OWN_PATHS)


def _scope(method: str, path: str, root_path: str = "", kind: str = "http") -> dict[str, Any]:
    scope: dict[str, Any] = {"type": kind, "path": root_path + path, "root_path": root_path, "headers": []}
    return scope | ({"method": method} if kind == "http" else {})


@pytest.mark.parametrize("root_path", ["", "/prefix"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("POST", "/v1/messages"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/audio/transcriptions"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/rerank"),
        ("POST", "/score"),
        ("POST", "/classify"),
    ],
)
def test_routes_of_every_task_are_known(
    catalog: RouteCatalog, method: str, path: str, root_path: str
) -> None:
    catalog.match(_scope(method, path, root_path))


def test_websockets_are_known_too(catalog: RouteCatalog) -> None:
    catalog.match(_scope("", "/v1/realtime", kind="websocket"))
    with pytest.raises(RouteNotFoundError):
        catalog.match(_scope("", "/v1/nothing", kind="websocket"))


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/nothing", "/v1/chat/completions/", "//v1/completions", "/V1/completions"]
)
def test_a_wrong_path_is_not_found(catalog: RouteCatalog, path: str) -> None:
    with pytest.raises(RouteNotFoundError, match="this server has no"):
        catalog.match(_scope("POST", path))


@pytest.mark.parametrize(
    "path", ["/health", "/stats", "/metrics", "/v1/models", "/models/load", "/docs", "/version"]
)
def test_what_the_server_answers_itself_never_goes_to_an_expert(catalog: RouteCatalog, path: str) -> None:
    for method in ("GET", "POST"):
        with pytest.raises(RouteNotFoundError):
            catalog.match(_scope(method, path))


def test_a_wrong_method_names_the_right_ones(catalog: RouteCatalog) -> None:
    with pytest.raises(MethodNotAllowedError) as refused:
        catalog.match(_scope("DELETE", "/v1/chat/completions"))
    assert list(refused.value.allowed) == ["POST"]


def test_a_very_long_path_is_cut_in_the_message(catalog: RouteCatalog) -> None:
    with pytest.raises(RouteNotFoundError) as refused:
        catalog.match(_scope("GET", "/" + "x" * 100_000))
    assert len(refused.value.message) < 300


def test_openapi_has_vllms_routes_and_none_of_the_servers_own(catalog: RouteCatalog) -> None:
    paths, components = catalog.openapi_paths()
    assert {"/v1/chat/completions", "/v1/responses", "/tokenize"} <= set(paths)
    assert not {"/health", "/v1/models", "/metrics"} & set(paths)
    assert "schemas" in components


@pytest.mark.parametrize(
    ("path", "root_path", "expected"),
    [
        ("/v1/models", "", "/v1/models"),
        ("/p/v1/models", "/p", "/v1/models"),
        ("/v1/models", "/p", "/v1/models"),
        ("/pv1/models", "/p", "/pv1/models"),
    ],
)
def test_the_prefix_of_a_proxy_is_no_part_of_the_path(path: str, root_path: str, expected: str) -> None:
    assert route_path({"path": path, "root_path": root_path}) == expected
