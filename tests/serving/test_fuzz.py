# SPDX-License-Identifier: Apache-2.0
"""Bodies nobody would send: 300 of them, always the same, none of which may break or stall the server."""

from __future__ import annotations

import copy
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.serving.running_server import RunningServer

BODIES = 300
ANSWERED_WITHIN_S = 30.0
SEEDS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "model": "qwen_coder",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hola"}]},
            ],
            "max_tokens": 2,
            "temperature": 0.5,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["x"],
            "stream": False,
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "response_format": {"type": "text"},
            "logit_bias": {"5": 1},
        },
    ),
    ("/v1/completions", {"model": "phi4_fast", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "n": 2}),
    (
        "/v1/responses",
        {"model": "phi4_fast", "input": [{"role": "user", "content": "Hola"}], "max_output_tokens": 2},
    ),
    ("/v1/messages", {"model": "phi4_fast", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    ("/v1/route", {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hola"}]}]}),
    ("/tokenize", {"model": "qwen_coder", "messages": [{"role": "user", "content": "Hola"}]}),
]
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "auto",
    "\x00",
    "\ud800",
    "💥" * 200,
    "{{ 7*7 }}{% for i in range(10**9) %}",
    "x" * 20_000,
    [],
    {},
    [[]],
    [None, 1, "a", {}],
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}},
    {"$ref": "#"},
]
# These make requests large on purpose, which is allowed and only slow.
LEFT_ALONE = {"max_tokens", "max_output_tokens", "n"}


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [] if not path or path[-1] in LEFT_ALONE else [path]
    for key, item in inner:
        found += _places(item, (*path, key))
    return found


def _mutate(body: dict[str, Any], chance: random.Random) -> bytes:
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 2, 3))):
        places = _places(body)
        if not places:
            break
        *way, last = chance.choice(places)
        holder: Any = body
        for key in way:
            holder = holder[key]
        action = chance.random()
        if action < 0.6:
            holder[last] = copy.deepcopy(chance.choice(ODD))
        elif action < 0.75:
            del holder[last]
        elif action < 0.9 and isinstance(holder, dict):
            holder[chance.choice(("extra", "model", "input", "prompt", "messages", ""))] = holder[last]
        else:
            holder[last] = [copy.deepcopy(holder[last])] * chance.choice((2, 50))
    raw = json.dumps(body).encode()
    cut = chance.random()
    if cut < 0.05:
        raw = raw[: chance.randrange(len(raw))]
    elif cut < 0.1:
        at = chance.randrange(len(raw))
        raw = raw[:at] + bytes(chance.randrange(256) for _ in range(3)) + raw[at + 1 :]
    return raw


def test_mutated_bodies_never_break_or_stall_the_server(server: RunningServer) -> None:
    chance = random.Random(20_24)
    cases = []
    for number in range(BODIES):
        path, body = SEEDS[number % len(SEEDS)]
        cases.append((path, _mutate(body, chance)))

    def send(case: tuple[str, bytes]) -> tuple[int, str]:
        headers = {"content-type": "application/json"}
        try:
            answer = httpx.post(
                f"{server.url}{case[0]}", content=case[1], headers=headers, timeout=ANSWERED_WITHIN_S
            )
        except httpx.TimeoutException:
            return 0, "no answer in time"
        return answer.status_code, answer.text[:300]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(send, cases))
    bad = [
        (case[0], case[1][:300], *answer)
        for case, answer in zip(cases, answers, strict=True)
        if not 200 <= answer[0] < 500
    ]
    assert not bad, "\n".join(map(str, bad))
    assert 0.1 < sum(status == 200 for status, _ in answers) / BODIES < 0.9, (
        "mutations too weak or too strong"
    )
    assert all(e["in_flight"] == 0 for e in server.get("/stats")["experts"].values())
