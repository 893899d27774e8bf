# SPDX-License-Identifier: Apache-2.0
"""Refusals: their HTTP status, OpenAI's error shape and Retry-After."""

from __future__ import annotations

import json

import pytest

from vllm_axion.serving.errors import (
    BadRequestError,
    MethodNotAllowedError,
    QueueFullError,
    ServingError,
)


def _all_errors() -> list[type[ServingError]]:
    found = [ServingError]
    for error in found:
        found += error.__subclasses__()
    return found


@pytest.mark.parametrize("error", _all_errors(), ids=lambda e: e.__name__)
def test_every_error_has_openai_shape(error: type[ServingError]) -> None:
    body = json.loads(error("what is wrong", param="model").body_bytes())
    assert body == {
        "error": {"message": "what is wrong", "type": error.type, "param": "model", "code": error.code}
    }
    assert 400 <= error.status <= 599


def test_codes_tell_errors_apart() -> None:
    codes = [error.code for error in _all_errors()]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (7.3, "8"), (60, "60")])
def test_retry_after_is_whole_seconds_and_never_too_early(seconds: float, header: str) -> None:
    assert QueueFullError("full", retry_after_s=seconds).headers()["retry-after"] == header


def test_no_retry_after_where_waiting_does_not_help() -> None:
    assert "retry-after" not in BadRequestError("wrong").headers()


def test_wrong_method_names_the_right_ones_in_the_message_and_in_allow() -> None:
    error = MethodNotAllowedError.on("/stats", "POST", ["GET", "HEAD"])
    assert error.headers()["allow"] == "GET, HEAD"
    assert error.message == "/stats takes GET, HEAD, not POST"


def test_a_message_that_is_no_unicode_text_is_still_sent() -> None:
    assert (
        json.loads(BadRequestError("half a pair: \ud800").body_bytes())["error"]["code"] == "invalid_request"
    )
