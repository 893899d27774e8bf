# SPDX-License-Identifier: Apache-2.0
"""Values of configuration fields: byte sizes, ids, paths, URLs; what each accepts and says when refusing."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from vllm_axion.serving.config_faults import show

MIB = 1024**2
YEAR_S = 365 * 24 * 3600
_UNITS = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) *([A-Za-z]+)")
_SIZE_PATTERN = r"^[0-9]{1,15}(\.[0-9]{1,6})? *([KkMmGgTt][Ii]?)?[Bb]$"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ID_PATTERN = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[?[0-9A-Fa-f:]{2,39}\]?")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
KEY = re.compile(r"[!-~]+")


def parse_bytes(value: object) -> object:
    """A byte size: an int is returned as it is, text such as "512MiB" or "1.5 GB" as bytes; None stays None.

    KiB, MiB, GiB, TiB count in 1024s, KB, MB, GB, TB in 1000s. Raises ValueError for anything else.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not isinstance(value, str):
        raise ValueError(f'{show(value)} is not a byte size such as "512MiB" or "2GiB"')
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f'{show(value)} is not a byte size such as "512MiB" or "2GiB"')
    number, unit = match.groups()
    scale = _UNITS.get(unit.lower())
    if scale is None:
        meant = f"{number}{unit[0].upper()}iB" if unit[0].lower() in "kmgt" else f"{number}MiB"
        raise ValueError(f'{show(value)} is not a byte size; did you mean "{meant}"?')
    return int(Decimal(number) * scale)


def expert_id(value: str) -> str:
    if _ID.fullmatch(value) is None:
        raise ValueError(
            f"{show(value)} is not a usable id; use 1 to 64 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    if value.casefold() == "auto":
        raise ValueError('"auto" is the name that asks the router to choose; give the expert another id')
    return value


def model_path(value: str) -> str:
    if not value or any(ord(c) < 32 or ord(c) == 127 for c in value):
        raise ValueError(f"{show(value)} is not a usable path or hub id")
    if not is_path(value) and _HUB_ID.fullmatch(value) is None:
        raise ValueError(
            f'{show(value)} is neither a path (beginning with "/", "./" or "../") '
            'nor a hub id such as "owner/name"'
        )
    return value


def is_path(value: str) -> bool:
    return value.startswith(("/", "./", "../"))


def domain_name(value: str) -> str:
    if _ID.fullmatch(value) is None:
        raise ValueError(
            f"{show(value)} is not a usable domain name; use 1 to 64 of A-Z a-z 0-9 . _ - "
            "and begin with a letter or digit"
        )
    return value


def web_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f'{show(value)} is not a URL such as "http://localhost:8001"')
    return value


def media_domain(value: str) -> str:
    if _HOST.fullmatch(value) is None:
        raise ValueError(f'{show(value)} is not a host name; write it bare, such as "images.example.org"')
    return value.lower()


def origin(value: str) -> str:
    if value == "*":
        return value
    try:
        parts = urlsplit(value)
        bare = f"{parts.scheme}://{parts.netloc}" == value and parts.scheme in ("http", "https")
        usable = bare and bool(parts.hostname) and "@" not in parts.netloc and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            f'{show(value)} is not an origin such as "https://chat.example.org" (no path), or "*"'
        )
    return value


ByteSize = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SIZE_PATTERN}]}
    ),
]
OptionalByteSize = Annotated[
    int | None,
    BeforeValidator(parse_bytes),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": MIB},
                {"type": "string", "pattern": _SIZE_PATTERN},
                {"type": "null"},
            ]
        }
    ),
]
Name = Annotated[str, AfterValidator(domain_name), Field(json_schema_extra={"pattern": ID_PATTERN})]
