# SPDX-License-Identifier: Apache-2.0
"""Faults of a configuration file: reading JSON strictly and saying in one plain line what is wrong and where.

Nothing here knows the configuration's models; `config.py` hands them in.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

MAX_FILE_BYTES = 4 * 1024 * 1024  # a router's worth of examples is some 100 KB; more is a wrong file
CROSS_FIELD = "cross_field"  # error type of the checks that span fields; they bring their faults along

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_$-]*")
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of sensible size",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text in double quotes",
    "bool_type": "true or false",
    "list_type": "a list [...]",
    "dict_type": "an object {...}",
    "model_type": "an object {...}",
    "model_attributes_type": "an object {...}",
}
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


@dataclass(frozen=True)
class Fault:
    """One thing wrong: `path` is a JSON path such as `experts[2].priority`, "" for the whole file."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(ValueError):
    """A configuration that cannot be used; `str()` is one line per fault, beginning with the file's name."""

    def __init__(self, source: str, faults: Sequence[Fault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        super().__init__("\n".join(f"{printable(source)}: {fault}" for fault in self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, tuple[Fault, ...]]]:
        return type(self), (self.source, self.faults)


def printable(text: str) -> str:
    """`text` with control characters and lone surrogates escaped, so that it stays one printable line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def show(value: object, width: int = 48) -> str:
    """A value as JSON, shortened: what the reader will recognise from the file."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, TypeError, RecursionError):
        text = f"<{type(value).__name__}>"
    text = printable(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def json_path(loc: Iterable[int | str]) -> str:
    """(`experts`, 2, `priority`) -> `experts[2].priority`."""
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            path += f".{part}" if path else part
        else:
            path += f"[{show(part)}]"
    return path


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid name closest to `word`, ignoring case and `-` against `_`, or None when nothing is close."""
    by_plain = {name.casefold().replace("-", "_"): name for name in valid}
    found = difflib.get_close_matches(word[:200].casefold().replace("-", "_"), by_plain, n=1, cutoff=0.6)
    return by_plain[found[0]] if found else None


def did_you_mean(word: str, valid: Sequence[str]) -> str:
    """`; did you mean "x"?`, or the valid names when none is close."""
    near = nearest(word, valid)
    if near is not None:
        return f'; did you mean "{near}"?'
    return f"; valid here: {', '.join(valid)}" if valid else ""


# ---------------------------------------------------------------- reading


def open_to_others(path: Path, given: Path, info: os.stat_result) -> str | None:
    """Why a file must not be trusted because anyone on the machine could change it, or None.

    `given` is how the file was reached: a link in an open folder can be turned elsewhere.
    """
    if os.name != "posix":
        return None
    name = printable(str(path))
    if info.st_mode & stat.S_IWOTH:
        return f"anyone on this machine may write {name}; take that away: chmod o-w {name}"
    for folder in (path.parent, given.parent):
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            parent = printable(str(folder))
            return f"anyone on this machine may replace files in {parent}; take that away: chmod o-w {parent}"
    return None


def read_private_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file that only its owner and group may change.

    Raises ValueError with a one-line reason: missing, not a regular file, too large, writable by others.
    """
    try:
        given, path = path, path.resolve(strict=True)
        # O_NONBLOCK: a pipe put where the file should be must not hang the server's start.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except PermissionError:
        raise ValueError("may not be read by this user") from None
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"cannot be opened: {getattr(error, 'strerror', None) or 'not a usable path'}"
        ) from None
    try:
        info = os.fstat(handle)
        if stat.S_ISDIR(info.st_mode):
            raise ValueError("is a folder, not a file")
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("is not a regular file")
        if reason := open_to_others(path, given, info):
            raise ValueError(reason)
        with open(handle, "rb", closefd=False) as file:
            content = file.read(limit + 1)
    finally:
        os.close(handle)
    if len(content) > limit:
        raise ValueError(f"is larger than {limit // 1024} KiB; is it the right file?")
    return content


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys stood in it twice."""

    twice: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        found.twice = tuple(key for key in found if keys.count(key) > 1)
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write a number or null")


def parse_json(content: bytes) -> tuple[Any, list[Fault]]:
    """The JSON value in `content` and its faults: bad syntax (line and column), duplicate keys, broken text.

    The value is None when the syntax is bad.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [Fault("", f"byte {error.start} is not UTF-8 text; save the file as UTF-8")]
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        return None, [Fault("", f"{where}: not valid JSON: {_syntax_hint(text, error)}")]
    except RecursionError:
        return None, [Fault("", "is nested too deeply")]
    except ValueError as error:  # NaN, Infinity, a number of thousands of digits
        reason = str(error) if "not JSON" in str(error) else "a number in it is far too long"
        return None, [Fault("", f"not valid JSON: {reason}")]
    faults: list[Fault] = []
    try:
        _walk(value, (), faults)
    except RecursionError:
        return None, [Fault("", "is nested too deeply")]
    return value, faults


def _syntax_hint(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos : error.pos + 2]
    if not text.strip():
        return "the file is empty"
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    # Python 3.13 points at the comma, earlier ones behind it.
    closing = re.match(r"(,?)\s*[]}]", text[error.pos : error.pos + 100])
    if closing and (closing[1] or text[: error.pos].rstrip().endswith(",")):
        return "a comma before a closing bracket; take it away"
    if rest.startswith("'"):
        return "text stands in double quotes, not single ones"
    return error.msg[:1].lower() + error.msg[1:]


def _walk(value: object, loc: tuple[int | str, ...], faults: list[Fault]) -> None:
    if isinstance(value, dict):
        for key in getattr(value, "twice", ()):
            faults.append(Fault(json_path((*loc, key)), "stands in this object twice; keep one"))
        for key, item in value.items():
            if isinstance(key, str) and not _encodable(key):
                faults.append(
                    Fault(json_path((*loc, key)), "the name holds half a surrogate pair, which is not text")
                )
            _walk(item, (*loc, str(key)), faults)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _walk(item, (*loc, index), faults)
    elif isinstance(value, str) and not _encodable(value):
        faults.append(
            Fault(json_path(loc), "holds half a surrogate pair (\\ud800..\\udfff), which is not text")
        )


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_faults(value: object) -> list[Fault]:
    """Faults of text inside an already parsed JSON value; empty when all of it can be encoded as UTF-8."""
    faults: list[Fault] = []
    try:
        _walk(value, (), faults)
    except RecursionError:
        faults.append(Fault("", "is nested too deeply"))
    return faults


# ---------------------------------------------------------------- pydantic's errors in plain words


def plain_faults(error: ValidationError, model: type[BaseModel], secret: frozenset[str]) -> list[Fault]:
    """pydantic's errors as faults in plain words.

    `model` is the root model. Values below a field named in `secret` are never shown.
    """
    faults: list[Fault] = []
    for item in error.errors(include_url=False):
        if item["type"] == CROSS_FIELD:
            faults.extend(item["ctx"]["faults"])
            continue
        loc = item["loc"]
        if len(loc) > 1 and loc[-1] == "[key]":  # pydantic's way to say that a name in an object is the fault
            loc = loc[:-1]
        hidden = any(part in secret for part in loc)
        value = "this" if hidden else show(item["input"])
        faults.append(Fault(json_path(loc), _message(item["type"], value, item, model, loc, hidden)))
    return faults


def _message(
    kind: str,
    value: str,
    item: Mapping[str, Any],
    model: type[BaseModel],
    loc: tuple[int | str, ...],
    hidden: bool,
) -> str:
    context = item.get("ctx", {})
    field = _field_at(model, loc)
    if kind == "missing":
        return f"is missing{_hint(field)}"
    if kind == "extra_forbidden":
        owner = _type_at(model, loc[:-1])
        valid = list(owner.model_fields) if isinstance(owner, type) and issubclass(owner, BaseModel) else []
        return "unknown field" + did_you_mean(str(loc[-1]), valid)
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        choices = [str(choice) for choice in typing.get_args(_type_at(model, loc))]
        near = None if hidden else nearest(str(item["input"]), choices)
        return f"{value} is not one of {', '.join(choices)}" + (f'; did you mean "{near}"?' if near else "")
    if kind == "too_short":
        return f"is empty; it needs at least {context['min_length']} entry{_hint(field)}"
    if kind == "string_too_short":
        return f"must not be empty{_hint(field)}"
    if kind in _BOUNDS:
        return f"{value} is not {_bounds(field)}{_hint(field)}"
    if kind in _EXPECTED:
        return f"{value} is not {_EXPECTED[kind]}{_hint(field)}"
    return f"{value} cannot be used here{_hint(field)}"


def _hint(field: FieldInfo | None) -> str:
    if field is None or not field.description:
        return ""
    return f" ({field.description.split('. ')[0].rstrip('.')})"


def _bounds(field: FieldInfo | None) -> str:
    low = high = None
    low_word = "at least"
    for rule in field.metadata if field else ():
        if getattr(rule, "ge", None) is not None:
            low = rule.ge
        if getattr(rule, "gt", None) is not None:
            low, low_word = rule.gt, "more than"
        if getattr(rule, "le", None) is not None:
            high = rule.le
    if low is not None and high is not None:
        low, high = _round_size(low), _round_size(high)
        return f"within {low}..{high}" if low_word == "at least" else f"in the range above {low} up to {high}"
    return f"{low_word} {low}" if low is not None else f"at most {high}"


def _round_size(number: float) -> str:
    """A bound that is a round byte size as one, since that is how the file may say it."""
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2)):
        if number >= size and number % size == 0:
            return f"{int(number // size)}{unit}"
    return str(number)


def _unwrap(annotation: Any) -> Any:
    """`X | None` and `Annotated[X, ...]` -> `X`."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            real = [a for a in typing.get_args(annotation) if a is not type(None)]
            if len(real) != 1:
                return annotation
            annotation = real[0]
        else:
            return annotation


def _type_at(model: type[BaseModel], loc: Sequence[int | str]) -> Any:
    """The annotation that the models give for a JSON path, or None."""
    found: Any = model
    for part in loc:
        if isinstance(found, type) and issubclass(found, BaseModel):
            field = found.model_fields.get(str(part))
            found = _unwrap(field.annotation) if field else None
        elif typing.get_origin(found) in (list, dict):
            found = _unwrap(typing.get_args(found)[-1])
        else:
            return None
    return found


def _field_at(model: type[BaseModel], loc: Sequence[int | str]) -> FieldInfo | None:
    owner = _type_at(model, loc[:-1])
    if loc and isinstance(owner, type) and issubclass(owner, BaseModel):
        return owner.model_fields.get(str(loc[-1]))
    return None
