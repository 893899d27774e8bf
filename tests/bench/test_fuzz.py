# SPDX-License-Identifier: Apache-2.0
"""Five hundred generated bodies, the same each time. `bench/fuzz.py` sends 100,000."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from bench.fuzz import Finding, Tally, fault_of, fuzz
from bench.request_bodies import MAX_TOKENS, Case, batch, valid_bodies
from bench.server_process import serving, write_config
from vllm_axion.demo_models import EXPERT_IDS

BATCHES, SIZE, SEED = 4, 125, 2


async def test_five_hundred_generated_bodies_find_no_fault(demo_models: Path, tmp_path: Path) -> None:
    with serving(write_config(demo_models, tmp_path), "--disable-uvicorn-access-log") as server:
        server.wait_until_up()
        for expert in EXPERT_IDS:
            server.chat(expert)
        seen = Tally()
        async for _, tally in fuzz(server.url, first=0, last=BATCHES, seed=SEED, size=SIZE):
            seen.sent += tally.sent
            seen.statuses += tally.statuses
            seen.kinds += tally.kinds
            seen.findings += tally.findings
        idle = server.client.get("/stats").json()["experts"].values()
        assert all(expert["in_flight"] == 0 for expert in idle)
    assert not seen.findings, "\n".join(finding.line() for finding in seen.findings)
    assert seen.sent == BATCHES * SIZE
    assert {"valid", "mutated", "schema", "mutated schema"} <= set(seen.kinds)
    assert 0.05 < seen.statuses["200"] / seen.sent < 0.9, "the bodies are too strange or too tame"


def test_a_batch_is_the_same_every_time_so_that_a_run_can_be_resumed() -> None:
    again = [batch(7, 200, SEED, EXPERT_IDS, None) for _ in range(2)]
    assert again[0] == again[1]
    assert again[0] != batch(8, 200, SEED, EXPERT_IDS, None)
    assert [case.number for case in again[0]] == list(range(7 * 200, 8 * 200))


def test_bodies_ask_for_few_tokens() -> None:
    for case in batch(1, 500, SEED, EXPERT_IDS, None):
        try:
            body = json.loads(case.body)
        except (ValueError, RecursionError):
            continue
        for name in ("max_tokens", "max_output_tokens", "n") if isinstance(body, dict) else ():
            value = body.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                assert value <= MAX_TOKENS or value >= 1_000_000, case


def test_seeds_of_mutations_cover_every_route_with_a_chat_in_it() -> None:
    paths = {path for path, _ in valid_bodies(EXPERT_IDS)}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/route"} <= paths


@pytest.mark.parametrize(
    ("status", "headers", "text", "fault"),
    [
        (200, {}, "{}", None),
        (400, {}, '{"error": {"message": "no"}}', None),
        (400, {}, "no", "shape of the error"),
        (400, {}, '{"error": {"message": "in .../site-packages/x.py"}}', "tells of the machine"),
        (500, {}, '{"error": {"message": "x"}}', "server error"),
        (503, {}, '{"error": {"message": "x"}}', "server error"),
        (503, {"retry-after": "1"}, '{"error": {"message": "x"}}', None),
        (200, {}, 'data: {"error": {"message": "x", "code": 500}}\n\n', "server error in a stream"),
    ],
)
def test_what_is_a_fault(status: int, headers: dict[str, str], text: str, fault: str | None) -> None:
    assert fault_of(status, httpx.Headers(headers), text) == fault


def test_a_finding_can_be_sent_again() -> None:
    line = Finding("server error", 500, "x", Case(1, "/v1/completions", b"\xff{", "mutated")).line()
    assert json.loads(line)["body"] == "/3s="
