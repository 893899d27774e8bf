# SPDX-License-Identifier: Apache-2.0
"""Renews what is generated: tables of `docs/configuration.md`, and `vllm_axion/serving/config.schema.json`.

Run `python tools/configuration_page.py` after a change of a field or a preset; tests fail until then.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from vllm_axion.serving.config import (
    ApiKeyConfig,
    CoresConfig,
    DomainConfig,
    EmbeddingCacheConfig,
    EncoderConfig,
    ExpertConfig,
    LazyLoadingConfig,
    LimitsConfig,
    MultiModelConfig,
    RagConfig,
    RouterConfig,
    ServerConfig,
    parse_bytes,
    schema,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tools.preset_memory import tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "configuration.md"
SCHEMA = ROOT / "vllm_axion" / "serving" / "config.schema.json"
SECTIONS: dict[str, type[BaseModel]] = {
    "file": MultiModelConfig,
    "experts[]": ExpertConfig,
    "lazy_loading": LazyLoadingConfig,
    "cores": CoresConfig,
    "router": RouterConfig,
    "router.encoder": EncoderConfig,
    "router.embedding_cache": EmbeddingCacheConfig,
    "limits": LimitsConfig,
    "server": ServerConfig,
    "server.api_keys[]": ApiKeyConfig,
    "rag": RagConfig,
    "domains.NAME": DomainConfig,
}
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", SecretStr: "text"}


def type_words(field: FieldInfo) -> str:
    """The field's type in words a JSON writer knows."""
    words = _words(field.annotation)
    readers = [getattr(rule, "func", None) for rule in field.metadata]
    return words.replace("whole number", "byte size") if parse_bytes in readers else words


def _words(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(args[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if arg is type(None) else _words(arg) for arg in args)
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{arg}`" for arg in args)
    if origin is list:
        return "list of " + {"text": "texts"}.get(_words(args[0]), _words(args[0]))
    if annotation is EncoderConfig:
        return '`"ngram"` or object'
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "object"
    return _TYPES.get(annotation, str(annotation))


def default_words(field: FieldInfo) -> str:
    """The field's default as JSON, or that it must be given."""
    if field.is_required():
        return "*required*"
    if field.default == EncoderConfig(type="ngram"):
        return '`"ngram"`'
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{json.dumps(field.default)}`"


def range_words(field: FieldInfo) -> str:
    """` (1 to 5)` for a field with two plain bounds."""
    low = next((rule.ge for rule in field.metadata if getattr(rule, "ge", None) is not None), None)
    high = next((rule.le for rule in field.metadata if getattr(rule, "le", None) is not None), None)
    if low is not None and high is not None and high <= 1000:
        return f", {low} to {high}"
    return ""


def field_tables() -> Iterator[str]:
    """One table per section: field, type, default, meaning."""
    for name, model in SECTIONS.items():
        yield f"### `{name}`\n\n" if name != "file" else "### The file\n\n"
        yield f"{(model.__doc__ or '').strip()}\n\n"
        yield "| field | type | default | meaning |\n| --- | --- | --- | --- |\n"
        if model is MultiModelConfig:
            yield "| `$schema` | text | none | Address of the JSON Schema, for editors. Else ignored. |\n"
        for key, field in model.model_fields.items():
            kind = type_words(field) + range_words(field)
            yield f"| `{key}` | {kind} | {default_words(field)} | {field.description} |\n"
        yield "\n"


def renewed(page: str) -> str:
    """The page with its generated parts made anew. Raises ValueError when it has no place for them."""
    for name, text in (("fields", "".join(field_tables())), ("presets", tables())):
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, after = page.index(begin) + len(begin), page.index(end)
        page = f"{page[:before]}\n{text.strip()}\n\n{page[after:]}"
    return page


def schema_text() -> str:
    """What `config.schema.json` must hold."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    SCHEMA.write_text(schema_text(), encoding="utf-8")
