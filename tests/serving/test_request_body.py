# SPDX-License-Identifier: Apache-2.0
"""Reading a body: which expert it names, whether it streams, and the words to route on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_axion.serving.errors import BadRequestError
from vllm_axion.serving.request_body import parse_body, query_model

JSON = "application/json"


def _parse(data: Any) -> Any:
    return parse_body(json.dumps(data).encode(), JSON)


@pytest.mark.parametrize("data", [{}, {"model": ""}, {"model": "auto"}, {"model": None}, {"prompt": "x"}])
def test_absent_empty_and_auto_leave_the_choice_to_the_router(data: dict[str, Any]) -> None:
    assert _parse(data).model is None


def test_a_named_model_is_kept_as_it_is() -> None:
    assert _parse({"model": "Auto "}).model == "Auto "


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"{", "not JSON"),
        (b'{"model": }', "line 1, column 11"),
        (b"[]", "JSON list"),
        (b"null", "JSON NoneType"),
        (b'"text"', "JSON str"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"n":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"model": 7}', "model is int"),
        (b'{"model": ["a"]}', "model is list"),
    ],
    ids=["open", "no value", "list", "null", "string", "bytes", "deep", "huge number", "int", "list model"],
)
def test_what_is_wrong_with_a_body_is_said_in_one_line(raw: bytes, says: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_body(raw, JSON)
    assert says in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/mixed"]
)
def test_a_type_that_web_pages_may_send_unasked_is_refused(content_type: str) -> None:
    with pytest.raises(BadRequestError, match="application/json"):
        parse_body(b"{}", content_type)


@pytest.mark.parametrize("content_type", [JSON, "Application/JSON; charset=utf-8", "application/ld+json"])
def test_json_types_are_taken_in_any_spelling(content_type: str) -> None:
    assert parse_body(b'{"stream":true}', content_type).stream


@pytest.mark.parametrize("stream", [False, None, 1, "true", [True]])
def test_only_true_is_a_stream(stream: Any) -> None:
    assert not _parse({"stream": stream}).stream


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":"x"}',
        b' \r\n\t{ "prompt":"x"}',
        b'{"model":"auto","prompt":"x"}',
        b'{"prompt":"x","model":""}',
        b'{"model":"other","prompt":"x","model":null}',
        b"{}",
        b'\xef\xbb\xbf{"prompt":"x"}',
        '{"prompt":"x"}'.encode("utf-16-le"),
        '{"prompt":"x"}'.encode("utf-16-be"),
        '{"prompt":"x"}'.encode("utf-16"),
        '{"prompt":"x"}'.encode("utf-32"),
    ],
)
def test_the_chosen_expert_is_the_only_thing_added_to_a_body(raw: bytes) -> None:
    body = parse_body(raw, JSON)
    given = {k: v for k, v in json.loads(raw).items() if k != "model"}
    assert json.loads(body.with_model("qwen_coder")) == {**given, "model": "qwen_coder"}


def test_a_body_that_names_its_expert_is_passed_on_byte_by_byte() -> None:
    raw = b'{ "model" : "phi4_fast", "seed": 1.0e0 }'
    assert parse_body(raw, JSON).with_model("phi4_fast") == raw


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        ),
    )
)
def test_any_object_survives_the_way_to_its_expert(data: dict[str, Any]) -> None:
    if isinstance(data.get("model"), int | float | bool | list | dict):
        with pytest.raises(BadRequestError):
            _parse(data)
        return
    body = _parse(data)
    assert json.loads(body.with_model("e")) == {**data, "model": "e"}
    assert all(isinstance(m, dict) for m in body.messages())


@pytest.mark.parametrize(
    ("data", "content"),
    [
        ({"messages": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"messages": ["junk", {"role": "user", "content": "a"}]}, ["a"]),
        ({"prompt": "a"}, ["a"]),
        ({"prompt": ["a", "b"]}, ["a\nb"]),
        ({"prompt": [1, 2]}, []),
        ({"input": "a"}, ["a"]),
        ({"input": [{"role": "user", "content": "a"}]}, ["a"]),
        ({"query": "a", "documents": ["b"]}, ["a"]),
        ({"messages": "a"}, []),
        ({}, []),
    ],
)
def test_words_to_route_on_are_found_wherever_an_endpoint_has_them(
    data: dict[str, Any], content: list[str]
) -> None:
    assert [m["content"] for m in _parse(data).messages()] == content


def _form(*parts: tuple[str, bytes]) -> tuple[bytes, str]:
    raw = b""
    for name, value in parts:
        raw += f'--limit\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
    return raw + b"--limit--\r\n", "multipart/form-data; boundary=limit"


def test_a_form_names_its_model_in_a_field() -> None:
    raw, content_type = _form(("file", b"\x00\xff" * 5000), ("model", b"qwen_coder"), ("language", b"es"))
    body = parse_body(raw, content_type)
    assert body.model == "qwen_coder" and not body.is_json and body.with_model("qwen_coder") == raw


def test_a_form_without_model_leaves_the_choice_to_the_router() -> None:
    assert parse_body(*_form(("file", b"x"))).model is None


@pytest.mark.parametrize(
    ("raw", "content_type"),
    [(b"x", "multipart/form-data"), (b"no form at all", "multipart/form-data; boundary=limit")],
)
def test_a_broken_form_is_refused(raw: bytes, content_type: str) -> None:
    with pytest.raises(BadRequestError, match="form"):
        parse_body(raw, content_type)


def test_without_a_body_the_query_may_name_the_model() -> None:
    assert parse_body(b"", "", b"a=1&model=qwen_coder").model == "qwen_coder"
    assert query_model(b"model=phi4_fast&model=qwen_coder") == "qwen_coder"
    assert query_model(b"model=auto") is None
    assert query_model(b"") is None


def test_a_query_with_too_many_fields_is_the_clients_fault() -> None:
    with pytest.raises(BadRequestError, match="more than 100 fields"):
        parse_body(b"", "", b"&".join([b"a=1"] * 101))
