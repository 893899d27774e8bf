# SPDX-License-Identifier: Apache-2.0
"""Which media a request may refer to: data in the request itself always, other hosts only if they are
allowed.

vLLM is told the same; this check comes before a model is loaded for a request that will be refused, and
answers in one line where vLLM 0.32 answers a local file with a 500.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from vllm_axion.serving.errors import BadRequestError

_URL_PARTS = ("image_url", "video_url", "audio_url", "file_url")
_DEEPEST = 6


def may_name_media(raw: bytes) -> bool:
    """Whether a body could refer to media at all, told without looking through megabytes of parsed JSON;
    a "no" is certain.
    """
    # A name with escapes is as good, and so is one in UTF-16 or UTF-32, which vLLM's app reads too.
    return b"_url" in raw or b"\\u" in raw or b"\0" in raw


def check_media(data: Mapping[str, Any], allowed_domains: Collection[str]) -> None:
    """Refuse a request that names media this server would have to fetch from where it may not.

    Raises:
        BadRequestError: a URL that is neither ``data:`` nor on an allowed host.
    """
    for url in _urls(data, 0):
        scheme, _, _ = url.partition(":")
        scheme = scheme.strip().lower()
        if scheme == "data":
            continue
        if scheme not in ("http", "https"):
            raise BadRequestError(
                "media must be a data: URL, or an https: one of an allowed host; local files are not read"
            )
        try:
            host = urlsplit(url.strip()).hostname or ""
        except ValueError:
            host = ""
        if host not in allowed_domains:
            shown = ", ".join(sorted(allowed_domains)) or "none"
            raise BadRequestError(
                f"media from {host[:100] or 'that address'} is not allowed (allowed hosts: {shown});"
                " send it as a data: URL"
            )


def _urls(value: Any, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        return
    if isinstance(value, Mapping):
        for name in _URL_PARTS:
            found = value.get(name)
            if isinstance(found, Mapping):
                found = found.get("url")
            if isinstance(found, str):
                yield found
        for name in ("messages", "input", "content", "prompt"):
            if isinstance(value.get(name), list | dict):
                yield from _urls(value[name], depth + 1)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, list | dict):
                yield from _urls(item, depth + 1)
