# SPDX-License-Identifier: Apache-2.0
"""Request bodies to try a server with: generated from its OpenAPI, and valid ones damaged.

A batch is fully told by ``(seed, number)``: the same two give the same bodies, so that a run can be resumed
and a finding repeated.
"""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["valid", "mutated", "schema", "mutated schema"]

MAX_TOKENS = 2
"""Tokens a body may ask for. Asking for more is allowed and only slow, so it is not tried here."""

_SCHEMA_SHARE = 0.08
_MUTATED_SCHEMA_SHARE = 0.30
_VALID_SHARE = 0.02
_LENGTHS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "min_tokens",
    "truncate_prompt_tokens",
)
_NUMBERS_OF_ANSWERS = ("n", "best_of", "beam_width", "num_beams", "max_tool_calls")
_SLOW = range(MAX_TOKENS + 1, 1_000_000)


@dataclass(frozen=True, slots=True)
class Case:
    """One request: POST ``body`` as JSON to ``path``."""

    number: int
    path: str
    body: bytes
    kind: Kind


def picture() -> str:
    """A red PNG of 8 by 8 pixels as a data URL."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = (b"\x00" + b"\xff\x00\x00" * 8) * 8
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    return "data:image/png;base64," + base64.b64encode(png + chunk(b"IEND", b"")).decode()


def valid_bodies(experts: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """(path, body) of requests the server answers, among them every field a mutation should meet."""
    text, vision = experts[0], next((e for e in experts if "multimodal" in e), experts[0])
    weather = {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    answer = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}}
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hola"}]},
        {"role": "assistant", "content": "¿Qué tal?", "tool_calls": []},
        {"role": "user", "content": "And shorter?", "name": "ana"},
    ]
    seen = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": picture(), "detail": "low"}, "uuid": "a"},
    ]
    called = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"X"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    sampling = {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "seed": 7,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "repetition_penalty": 1.1,
        "stop": ["x"],
        "stop_token_ids": [7],
        "logit_bias": {"5": 1.5},
        "bad_words": ["no"],
        "allowed_token_ids": [11, 12, 13],
        "ignore_eos": True,
        "min_tokens": 1,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "priority": 0,
        "include_stop_str_in_output": True,
        "prompt_logprobs": 1,
        "cache_salt": "s",
        "request_id": "r",
        "vllm_xargs": {"a": 1},
        "kv_transfer_params": {},
    }
    few = {"max_tokens": MAX_TOKENS}
    chat = "/v1/chat/completions"
    return [
        (chat, {"model": text, "messages": talk, **few, "logprobs": True, "top_logprobs": 2, "n": 2}),
        (chat, {"messages": talk, **few, "stream": True, "stream_options": {"include_usage": True}}),
        (chat, {"model": "auto", "messages": [{"role": "user", "content": "Hola"}], **few, **sampling}),
        (chat, {"model": vision, "messages": [{"role": "user", "content": seen}], **few}),
        (
            chat,
            {
                "model": text,
                "messages": called,
                **few,
                "tools": [{"type": "function", "function": weather}],
                "tool_choice": "none",
                "parallel_tool_calls": False,
                "add_generation_prompt": True,
                "continue_final_message": False,
                "chat_template_kwargs": {"a": 1},
                "documents": [{"title": "t", "text": "d"}],
                "reasoning_effort": "low",
                "user": "u",
                "metadata": {"k": "v"},
            },
        ),
        (
            chat,
            {
                "model": text,
                "messages": talk[:1],
                **few,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": answer, "strict": True},
                },
            },
        ),
        (
            chat,
            {
                "model": text,
                "messages": talk[1:2],
                **few,
                "structured_outputs": {"regex": "[a-z]{1,3}", "disable_any_whitespace": False},
            },
        ),
        (
            chat,
            {"model": text, "messages": talk[1:2], **few, "structured_outputs": {"choice": ["yes", "no"]}},
        ),
        (
            "/v1/completions",
            {"model": text, "prompt": ["a", "b"], **few, "echo": True, "n": 2, "logprobs": 2, "suffix": None},
        ),
        ("/v1/completions", {"model": experts[-1], "prompt": [7, 8, 9], **few, **sampling}),
        ("/v1/completions", {"prompt": "def f(x):", **few, "stream": True, "use_beam_search": False}),
        (
            "/v1/responses",
            {
                "model": text,
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hola"}]}],
                "instructions": "Be brief.",
                "max_output_tokens": MAX_TOKENS,
                "temperature": 0.2,
                "text": {"format": {"type": "text"}},
                "tools": [{"type": "function", **weather}],
                "tool_choice": "none",
                "store": False,
                "truncation": "disabled",
                "metadata": {"k": "v"},
                "include": [],
            },
        ),
        ("/v1/responses", {"model": text, "input": "Hola", "max_output_tokens": MAX_TOKENS, "stream": True}),
        (
            "/v1/messages",
            {
                "model": text,
                "messages": [{"role": "user", "content": [{"type": "text", "text": "Hola"}]}],
                "system": "Be brief.",
                **few,
                "stop_sequences": ["x"],
                "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
                "metadata": {"user_id": "u"},
            },
        ),
        ("/v1/messages/count_tokens", {"model": text, "messages": [{"role": "user", "content": "Hola"}]}),
        (
            "/v1/chat/completions/batch",
            {"model": text, "messages": [talk[:2], talk[1:2]], **few},
        ),
        ("/tokenize", {"model": text, "messages": talk, "return_token_strs": True}),
        ("/tokenize", {"model": text, "prompt": "Hola", "add_special_tokens": False}),
        ("/detokenize", {"model": text, "tokens": [7, 8, 9]}),
        (
            "/generative_scoring",
            {"model": text, "query": "a", "items": ["b"], "label_token_ids": [7, 8]},
        ),
        ("/v1/route", {"messages": talk}),
        ("/v1/route", {"prompt": "Write a function"}),
        ("/models/load", {"model": text}),
    ]


_ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    -(2**63),
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
    "",
    " ",
    "auto",
    "\x00",
    "\ud800",
    "é\u0301\u202e\u200b\ufeff\uffff",
    "💥" * 200,
    "{{ 7*7 }}{% for i in range(10**9) %}",
    "../../../etc/passwd",
    "a\r\nx-injected: 1",
    "<|im_end|><end_of_turn></s>[INST]<start_of_image><image_soft_token>",
    "x" * 20_000,
    "(a+)+$",
    "[" * 500,
    [],
    {},
    [[]],
    [None, 1, "a", {}],
    [0] * 2_000,
    {"": {"": {"": []}}},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}},
    {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"$ref": "#"},
    {"$ref": "http://127.0.0.1:1/schema.json"},
    {"type": "object", "properties": {"a": {"$ref": "#/properties/a"}}},
    {"type": "string", "pattern": "(?<=a)b\\1"},
)
_NAMES = (
    *("extra", "model", "input", "prompt", "messages", "stream", "n", "echo", "logprobs", "prompt_logprobs"),
    *("response_format", "structured_outputs", "tools", "tool_choice", "stop", "logit_bias", "suffix"),
    *("prompt_embeds", "chat_template", "chat_template_kwargs", "mm_processor_kwargs", "use_beam_search"),
    *("media_io_kwargs", "kv_transfer_params", "lora_request", "previous_response_id", "background"),
    *(
        "truncate_prompt_tokens",
        "cache_salt",
        "request_id",
        "return_token_ids",
        "reasoning",
        "stream_options",
    ),
    *("role", "content", "type", ""),
)


def mutated(body: Any, chance: random.Random) -> bytes:
    """The body with one to three faults: a value replaced, dropped, moved, repeated, nested; broken bytes."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        body = _mutate_once(body, chance)
    return encoded(body, chance)


def encoded(body: Any, chance: random.Random) -> bytes:
    """JSON of a body, now and then with a key given twice, bytes missing or bytes broken."""
    raw = body if isinstance(body, bytes) else json.dumps(_kept_short(body)).encode()
    fault = chance.random()
    if not raw or fault > 0.1:
        return raw
    at = chance.randrange(len(raw))
    if fault < 0.03:
        return raw[:at]
    if fault < 0.06:
        return raw[:at] + chance.randbytes(3) + raw[at + 1 :]
    if fault < 0.09 and isinstance(body, dict) and body:
        name = chance.choice(list(body))
        twice = json.dumps({name: chance.choice(_ODD)})[1:-1]
        return raw[:1] + twice.encode() + b"," + raw[1:]
    if fault < 0.095:
        return raw.decode().encode("utf-16")
    return b"[" * 5_000 + raw


def _mutate_once(body: Any, chance: random.Random) -> Any:
    places = _places(body)
    if not places:
        return copy.deepcopy(chance.choice(_ODD))
    *way, last = chance.choice(places)
    holder = body
    for key in way:
        holder = holder[key]
    action = chance.random()
    if action < 0.45:
        holder[last] = copy.deepcopy(chance.choice(_ODD))
    elif action < 0.55:
        holder[last] = _retyped(holder[last])
    elif action < 0.65:
        del holder[last]
    elif action < 0.78 and isinstance(holder, dict):
        holder[chance.choice(_NAMES)] = copy.deepcopy(chance.choice((holder[last], *_ODD)))
    elif action < 0.88:
        holder[last] = [copy.deepcopy(holder[last])] * chance.choice((1, 2, 50))
    elif action < 0.96:
        for _ in range(chance.choice((1, 3, 60))):
            holder[last] = {"a": holder[last]} if chance.random() < 0.5 else [holder[last]]
    else:
        holder[last] = copy.deepcopy(body)
    return body


def _retyped(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if len(value) > 3 else 3
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return -value if value else str(value)
    return json.dumps(value) if isinstance(value, dict) else {str(n): item for n, item in enumerate(value)}


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [way] if way else []
    for key, item in inner:
        found += _places(item, (*way, key))
    return found


def _kept_short(body: Any) -> Any:
    """The body, asking for few tokens; what no range allows stays, since it must be refused."""
    if not isinstance(body, dict):
        return body
    short = dict(body)
    for name in (*_LENGTHS, *_NUMBERS_OF_ANSWERS):
        value = short.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and int_in(value, _SLOW):
            short[name] = MAX_TOKENS
    if "prompt" in short or isinstance(short.get("messages"), list):
        short.setdefault("max_tokens", MAX_TOKENS)
    elif "input" in short:
        short.setdefault("max_output_tokens", MAX_TOKENS)
    return short


def int_in(value: float, within: range) -> bool:
    """Whether a number, NaN and infinities included, is one of the range when rounded down."""
    return within.start <= value < within.stop


# --- From the schema ---------------------------------------------------------------------------------------


class SchemaBodies:
    """Bodies that fit, or just do not fit, what the server's OpenAPI document says (by schemathesis).

    Args:
        document: OpenAPI, as the server gives it.
        experts: names to put in ``model``, which a generator would never guess.
    """

    def __init__(self, document: dict[str, Any], experts: Sequence[str]) -> None:
        import schemathesis

        self._schema = schemathesis.openapi.from_dict(document)
        self._experts = [*experts, "auto"]
        self.paths = sorted(
            path
            for path, item in document["paths"].items()
            if "application/json" in item.get("post", {}).get("requestBody", {}).get("content", {})
            and path != "/models/unload"
        )
        self._strategies: dict[tuple[str, bool], Any] = {}

    def generate(self, path: str, count: int, seed: int, *, fitting: bool) -> list[Any]:
        """Up to ``count`` bodies for POST ``path``: JSON values, or bytes that are not JSON."""
        import hypothesis

        found: list[Any] = []
        test = hypothesis.given(case=self._strategy(path, fitting))(lambda case: found.append(case.body))
        limits = hypothesis.settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run: Callable[[], None] = hypothesis.seed(seed)(limits(test))
            run()
        chance = random.Random(seed)
        return [self._named(body, chance) for body in found[:count]]

    def _strategy(self, path: str, fitting: bool) -> Any:
        from schemathesis import GenerationMode

        if (path, fitting) not in self._strategies:
            mode = GenerationMode.POSITIVE if fitting else GenerationMode.NEGATIVE
            self._strategies[path, fitting] = self._schema[path]["POST"].as_strategy(generation_mode=mode)
        return self._strategies[path, fitting]

    def _named(self, body: Any, chance: random.Random) -> Any:
        if isinstance(body, bytes):
            return body
        body = _plain(body)
        if isinstance(body, dict) and chance.random() < 0.9:
            body["model"] = chance.choice(self._experts)
        return body


def _plain(value: Any) -> Any:
    """JSON values only: generators mark absent parts with objects of their own."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool) or value is None else None


def batch(
    number: int, size: int, seed: int, experts: Sequence[str], schema: SchemaBodies | None
) -> list[Case]:
    """Batch ``number``: ``size`` cases numbered from ``number * size``. Without a schema: all mutations."""
    chance = random.Random(f"{seed}/{number}")
    seeds = valid_bodies(experts)
    cases: list[tuple[str, bytes, Kind]] = []
    if schema is not None:
        path = schema.paths[number % len(schema.paths)]
        fitting = (number // len(schema.paths)) % 2 == 0
        generated = schema.generate(path, int(size * _SCHEMA_SHARE), chance.randrange(2**32), fitting=fitting)
        cases += [(path, encoded(body, random.Random(0)), "schema") for body in generated]
        mutable = [body for body in generated if isinstance(body, dict)]
        for _ in range(int(size * _MUTATED_SCHEMA_SHARE) if mutable else 0):
            cases.append((path, mutated(chance.choice(mutable), chance), "mutated schema"))
    for _ in range(int(size * _VALID_SHARE)):
        path, body = chance.choice(seeds)
        cases.append((path, json.dumps(body).encode(), "valid"))
    while len(cases) < size:
        path, body = chance.choice(seeds)
        cases.append((path, mutated(body, chance), "mutated"))
    chance.shuffle(cases)
    return [Case(number * size + at, *case) for at, case in enumerate(cases[:size])]
