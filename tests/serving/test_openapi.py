# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document of a running server, and docs/endpoints.md, which must miss nothing the code has."""

from __future__ import annotations

import re
from pathlib import Path

import jsonschema
import pytest

from tests.serving.running_server import RunningServer
from vllm_axion.serving import answer, errors, gateway, openapi, residency, residency_events, server_app
from vllm_axion.serving.errors import ServingError


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "endpoints.md").read_text(encoding="utf-8")


def _documented_routes(page: str) -> set[str]:
    return set(re.findall(r"`(?:(?:GET|POST) )?(/[^\s`?]*)`", page))


def _rows(page: str, heading: str) -> list[list[str]]:
    section = re.split(r"\n#", page.split(f"# {heading}\n", 1)[1], maxsplit=1)[0]
    rows = re.findall(r"^\| (.+) \|$", section, re.MULTILINE)
    return [row.split(" | ") for row in rows[1:]]


# docs/endpoints.md


@pytest.mark.parametrize("path", sorted(openapi.OWN_ROUTES))
def test_every_own_endpoint_is_documented_with_its_methods(page: str, path: str) -> None:
    documented = " ".join(cells[0] for cells in _rows(page, "The server's own"))
    for method in ("get", "post"):
        if method in openapi.OWN_ROUTES[path]:
            assert f"`{method.upper()} {path}`" in documented


def test_no_endpoint_is_documented_that_the_server_does_not_have(page: str) -> None:
    rows = _rows(page, "The server's own")
    for route in _documented_routes("\n".join(cells[0] for cells in rows)):
        assert route in openapi.OWN_ROUTES or route in server_app.OWN_PATHS, route


def _all_errors() -> list[type[ServingError]]:
    found = [ServingError]
    for error in found:
        found += error.__subclasses__()
    return found


def test_every_error_is_documented_with_its_status_and_no_other(page: str) -> None:
    documented = {(cells[0], cells[1].strip("`")) for cells in _rows(page, "Errors")}
    assert documented == {(str(error.status), error.code) for error in _all_errors()}
    assert len(_all_errors()) == sum(
        isinstance(e, type) and issubclass(e, ServingError) for e in vars(errors).values()
    )


def _source(module: object) -> str:
    file = getattr(module, "__file__", "")
    return Path(file).read_text(encoding="utf-8")


def test_every_header_is_documented(page: str) -> None:
    documented = {cells[0].strip("`") for cells in _rows(page, "Headers")}
    used = set(re.findall(r'"(x-axion-[a-z-]+|retry-after|allow)"', _source(answer) + _source(errors)))
    assert len(used) == 6 and used | {"x-request-id"} == documented


def test_every_event_and_state_is_documented(page: str) -> None:
    events = set(re.findall(r'_event\("([a-z_]+)"', _source(residency_events)))
    assert events == {"status_change", "model_status"}
    for word in events | set(residency.State):
        assert f"`{word}`" in page, word
    assert gateway.EARLY_STREAM_AFTER_S == gateway.COMMENT_EVERY_S == 5.0 and "a comment every 5 s" in page
    assert f"A comment every {server_app._SSE_PING_S} s" in page


# /openapi.json


def test_openapi_describes_own_endpoints_and_vllms(server: RunningServer) -> None:
    document = server.get("/openapi.json")
    assert document["openapi"].startswith("3.1")
    assert set(openapi.OWN_ROUTES) <= set(document["paths"])
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"} <= set(document["paths"])


def test_every_own_endpoint_of_openapi_answers(server: RunningServer) -> None:
    with server.http() as client:
        for path, item in openapi.OWN_ROUTES.items():
            if "{" in path or path.endswith("/sse"):
                continue
            for method in item.keys() & {"get", "post"}:
                body = {"model": "phi4_fast", "prompt": "x"} if method == "post" else None
                answer = client.request(method.upper(), path, json=body)
                assert answer.status_code == 200, (method, path)
                assert str(answer.status_code) in item[method]["responses"]


def test_every_reference_in_openapi_leads_somewhere(server: RunningServer) -> None:
    text = server.http().get("/openapi.json").text
    schemas = server.get("/openapi.json")["components"]["schemas"]
    for name in set(re.findall(r'"#/components/schemas/([^"]+)"', text)):
        assert name in schemas, name


def test_errors_follow_the_schema_openapi_gives_for_them(server: RunningServer) -> None:
    schema = server.get("/openapi.json")["components"]["schemas"]["AxionError"]
    with server.http() as client:
        for answer in (client.get("/v1/nothing"), client.get("/v1/models/x"), client.post("/v1/route")):
            jsonschema.validate(answer.json(), schema)
