# SPDX-License-Identifier: Apache-2.0
"""Which media a request may refer to: data in it always, hosts only if allowed, files never."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_axion.serving.errors import BadRequestError
from vllm_axion.serving.media_policy import check_media, may_name_media

ALLOWED = {"images.example.org"}


def _chat(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, part]}]}


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAAA",
        "DATA:image/png;base64,AAAA",
        "https://images.example.org/a.png",
        "http://IMAGES.example.org:8080/a.png",
        "https://user:pass@images.example.org/a.png",
    ],
)
def test_data_and_allowed_hosts_pass(url: str) -> None:
    check_media(_chat({"type": "image_url", "image_url": {"url": url}}), ALLOWED)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        " file:///etc/passwd",
        "/etc/passwd",
        "etc/passwd",
        "",
        "ftp://images.example.org/a.png",
        "https://other.example.org/a.png",
        "https://images.example.org.evil.net/a.png",
        "https://images.example.org@evil.net/a.png",
        "https://evil.net/images.example.org",
        "https:///images.example.org",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1/a",
        "http://127.0.0.1:8082/metrics",
    ],
)
def test_everything_else_is_refused(url: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        check_media(_chat({"type": "image_url", "image_url": {"url": url}}), ALLOWED)
    assert "data: URL" in refused.value.message and "passwd" not in refused.value.message


@pytest.mark.parametrize(
    "data",
    [
        _chat({"type": "image_url", "image_url": "file:///x"}),
        _chat({"image_url": {"url": "file:///x"}}),
        _chat({"type": "video_url", "video_url": {"url": "file:///x"}}),
        _chat({"type": "audio_url", "audio_url": {"url": "file:///x"}}),
        _chat({"type": "input_image", "image_url": "file:///x"}),
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "file:///x"}]}]},
        {"input": [{"type": "input_file", "file_url": "file:///x"}]},
        {"messages": {"role": "user", "content": {"image_url": "file:///x"}}},
    ],
)
def test_urls_are_found_in_every_place_an_api_has_them(data: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError):
        check_media(data, ALLOWED)


def test_with_no_host_allowed_the_message_says_so() -> None:
    with pytest.raises(BadRequestError, match="allowed hosts: none"):
        check_media(_chat({"image_url": {"url": "https://a.example/x"}}), ())


def test_words_that_look_like_urls_are_words() -> None:
    check_media({"messages": [{"role": "user", "content": "file:///etc/passwd https://evil.net"}]}, ())
    check_media({"prompt": "https://evil.net/a.png", "url": "https://evil.net"}, ())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_media_are_looked_for_in_every_encoding_json_comes_in(encoding: str) -> None:
    body = json.dumps(
        {"messages": [{"role": "user", "content": [{"image_url": {"url": "file:///etc/passwd"}}]}]}
    )
    assert may_name_media(body.encode(encoding))
    assert may_name_media(body.replace("image_url", "image\\u005furl").encode(encoding))


def test_a_plain_chat_is_not_looked_through() -> None:
    assert not may_name_media(json.dumps({"messages": [{"role": "user", "content": "Hola"}]}).encode())
