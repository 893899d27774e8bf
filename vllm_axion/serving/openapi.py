# SPDX-License-Identifier: Apache-2.0
"""OpenAPI of the whole server: our own routes, and vLLM's as its own app describes them."""

from __future__ import annotations

from typing import Any

from vllm_axion import __version__
from vllm_axion.serving.route_catalog import RouteCatalog

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_NAMED = {
    "type": "object",
    "required": ["model"],
    "properties": {"model": {"type": "string", "description": "An expert_id."}},
}
_ROUTABLE = {
    "type": "object",
    "properties": {
        "messages": {"type": "array", "items": {"type": "object"}, "description": "OpenAI chat messages."},
        "prompt": {"type": "string", "description": "Instead of messages."},
    },
}


def _get(
    summary: str, media_type: str = "application/json", *, statuses: tuple[int, ...] = ()
) -> dict[str, Any]:
    return {"get": {"summary": summary, "tags": ["server"], "responses": _responses(media_type, statuses)}}


def _post(summary: str, schema: dict[str, Any], statuses: tuple[int, ...]) -> dict[str, Any]:
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    responses = _responses("application/json", statuses)
    return {"post": {"summary": summary, "tags": ["server"], "requestBody": body, "responses": responses}}


def _responses(media_type: str, statuses: tuple[int, ...]) -> dict[str, Any]:
    refused = {
        "description": "Refused",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/AxionError"}}},
    }
    answered = {"description": "Answered", "content": {media_type: {"schema": {}}}}
    return {"200": answered} | {str(status): refused for status in (401, *statuses)}


OWN_ROUTES: dict[str, dict[str, Any]] = {
    "/health": _get("Liveness; never waits for a model.", statuses=(503,)),
    "/ping": _get("The same as /health."),
    "/version": _get("Versions of vLLM and of this package."),
    "/load": _get("Requests under way on the whole server."),
    "/stats": _get("State, memory and traffic of every expert."),
    "/metrics": _get("Prometheus: vllm:* of every expert, vllm_axion:* of the server.", "text/plain"),
    "/models": _get("The same as /v1/models."),
    "/v1/models": _get("The experts and `auto`, each with its status."),
    "/v1/models/{model}": {
        **_get("One expert.", statuses=(404,)),
        "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
    },
    "/v1/route": _post("Which expert would answer, and why. Loads nothing.", _ROUTABLE, (400, 413)),
    "/models/load": _post("Begin to load an expert (admin key).", _NAMED, (400, 403, 404, 413, 429, 503)),
    "/models/unload": _post(
        "Drain and unload an expert, or cancel its load (admin key).", _NAMED, (400, 403, 404, 413)
    ),
    "/logs/stream/{name}": {
        **_get(
            "Log lines of an expert, or of the `server` (admin key).",
            "text/event-stream",
            statuses=(403, 404),
        ),
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}],
    },
    "/models/sse": _get("Residency events as they happen (admin key).", "text/event-stream", statuses=(403,)),
}


def document(catalog: RouteCatalog) -> dict[str, Any]:
    """The OpenAPI document. Takes about two seconds the first time: call it in a thread and keep the
    result.
    """
    paths, components = catalog.openapi_paths()
    schemas = {**components.get("schemas", {}), "AxionError": _ERROR}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vllm-axion",
            "version": __version__,
            "description": "Several models behind one OpenAI-compatible server. Leave `model` out, or say"
            " `auto`, and the expert is chosen by what is asked.",
        },
        "paths": {**OWN_ROUTES, **paths},
        "components": {**components, "schemas": schemas},
    }
