# SPDX-License-Identifier: Apache-2.0
"""What a request's body says about who should answer it: model, stream, and the words to route on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from python_multipart.multipart import MultipartParser, parse_options_header

from vllm_axion.serving.errors import BadRequestError

AUTO = "auto"
"""The model name that, like an absent or an empty one, asks the router to choose."""

_OPENING_BRACE = re.compile(rb"\s*\{(?!\x00)")  # not that of UTF-16 or UTF-32
_TEXT_FIELDS = ("prompt", "input", "query", "text", "text_1", "queries", "instructions")
_MAX_FORM_FIELD = 256
_MAX_QUERY_FIELDS = 100


@dataclass(frozen=True, slots=True)
class RequestBody:
    """A body, and what was read from it.

    ``model`` is ``None`` where the request leaves the choice to the router.
    """

    raw: bytes
    data: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    stream: bool = False
    is_json: bool = False

    def with_model(self, expert_id: str) -> bytes:
        """The body for the chosen expert: unchanged if it names it, else with its name put in."""
        if not self.is_json or self.model == expert_id:
            return self.raw
        if "model" not in self.data and self.data and _OPENING_BRACE.match(self.raw):
            # The usual case, and bodies may carry megabytes of images: put one key in front, keep every byte.
            name = b'{"model":' + json.dumps(expert_id).encode() + b","
            return _OPENING_BRACE.sub(lambda _: name, self.raw, count=1)
        return json.dumps({**self.data, "model": expert_id}).encode()

    def messages(self) -> list[Mapping[str, Any]]:
        """The conversation to route on, as OpenAI chat messages; a plain prompt becomes one user message."""
        for name in ("messages", "input"):
            value = self.data.get(name)
            if isinstance(value, list) and any(
                isinstance(m, dict) and ("role" in m or "content" in m) for m in value
            ):
                return [m for m in value if isinstance(m, dict)]
        for name in _TEXT_FIELDS:
            value = self.data.get(name)
            if isinstance(value, str):
                return [{"role": "user", "content": value}]
            if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
                return [{"role": "user", "content": "\n".join(value)}]
        return []


def parse_body(raw: bytes, content_type: str, query: bytes = b"") -> RequestBody:
    """Read a request's body; ``query`` is the URL's query string, which may name the model instead.

    Raises:
        BadRequestError: the body claims to be JSON and is not, or is not an object, or ``model`` is not a
        string.
    """
    media_type = content_type.split(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return RequestBody(raw, model=_name(_form_field(raw, content_type, "model")))
    if not raw:
        return RequestBody(raw, model=_name(_query_field(query, "model")))
    # A web page may send other types to any address without asking; JSON it may not. vLLM refuses them too.
    if media_type != "application/json" and not media_type.endswith("+json"):
        shown = media_type[:80] or "missing"
        raise BadRequestError(f"the Content-Type is {shown}; send the body as Content-Type: application/json")
    data = _parse_object(raw)
    model = data.get("model")
    if model is not None and not isinstance(model, str):
        raise BadRequestError(
            f"model is {type(model).__name__}, it must be a string or absent", param="model"
        )
    return RequestBody(raw, data, _name(model), data.get("stream") is True, True)


def query_model(query: bytes) -> str | None:
    """The model a URL's query names; ``None`` if it leaves the choice to the router."""
    return _name(_query_field(query, "model"))


def _name(model: str | None) -> str | None:
    return None if not model or model == AUTO else model


def _parse_object(raw: bytes) -> Mapping[str, Any]:
    try:
        data = json.loads(raw)
    except json.JSONDecodeError as error:
        raise BadRequestError(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise BadRequestError("the body is nested too deeply") from None
    except ValueError:  # not UTF-8, or a number too long to be one
        raise BadRequestError("the body is not JSON in UTF-8") from None
    if not isinstance(data, dict):
        raise BadRequestError(f"the body is a JSON {type(data).__name__}, it must be an object")
    return data


def _query_field(query: bytes, name: str) -> str | None:
    try:
        values = parse_qs(query.decode("latin-1"), max_num_fields=_MAX_QUERY_FIELDS).get(name)
    except ValueError:
        raise BadRequestError(f"the URL's query has more than {_MAX_QUERY_FIELDS} fields") from None
    return values[-1] if values else None


def _form_field(raw: bytes, content_type: str, wanted: str) -> str | None:
    """The value of one text field of a multipart form, without copying its files."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise BadRequestError("the form has no boundary in its Content-Type")
    name, header, header_value = b"", bytearray(), bytearray()
    found: dict[bytes, bytearray] = {}

    def on_header_end() -> None:
        nonlocal name
        if bytes(header).lower() == b"content-disposition":
            name = parse_options_header(bytes(header_value))[1].get(b"name", b"")
        header.clear()
        header_value.clear()

    def on_part_data(data: bytes, start: int, end: int) -> None:
        if name == wanted.encode():
            found.setdefault(name, bytearray()).extend(data[start : min(end, start + _MAX_FORM_FIELD)])

    parser = MultipartParser(
        boundary,
        {
            "on_header_field": lambda data, start, end: header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: header_value.extend(data[start:end]),
            "on_header_end": on_header_end,
            "on_part_data": on_part_data,
        },
    )
    try:
        parser.write(raw)
        parser.finalize()
    except Exception as error:
        raise BadRequestError(f"the form cannot be read: {error}") from None
    value = found.get(wanted.encode())
    return None if value is None else value.decode("utf-8", "replace")
