#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sends a real server generated request bodies and writes down every answer that is a fault of the server.

    python bench/fuzz.py --count 100000 --minutes 15     # begin, or go on where the last run stopped
    python bench/fuzz.py --replay bench/results/fuzz_findings.jsonl

A fault is a status of 500 or more that is not 503 with Retry-After, no answer within 30 s, a broken
connection, an error event inside a stream, an error that is not of OpenAI's shape or tells the machine's
paths, or an engine that ended. Each is a line of `bench/results/fuzz_findings.jsonl` with its body. The state
of the run (seed and next batch) is in `bench/results/fuzz.json`; bodies come from `request_bodies.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.machine import RESULTS, ROOT, load_average, machine, today, versions
from bench.request_bodies import Case, SchemaBodies, batch
from bench.server_process import serving, write_config
from vllm_axion.demo_models import EXPERT_IDS, make_demo_models

STATE = RESULTS / "fuzz.json"
FINDINGS = RESULTS / "fuzz_findings.jsonl"
BATCH = 500
CONCURRENCY = 16
ANSWER_WITHIN_S = 30.0

_JSON = {"content-type": "application/json"}
_LEAK = re.compile(r"Traceback \(most recent|site-packages|\.py\", line \d")
_STREAM_ERROR = re.compile(r'^data: .*"error": ?\{.*"code": ?5\d\d', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Finding:
    """An answer the server should not have given."""

    fault: str
    status: int
    answer: str
    case: Case

    def line(self) -> str:
        """One line of the findings file; the body can be sent again from it."""
        case = self.case
        return json.dumps(
            {
                "fault": self.fault,
                "status": self.status,
                "path": case.path,
                "kind": case.kind,
                "number": case.number,
                "answer": self.answer[:500],
                "body": base64.b64encode(case.body).decode(),
            }
        )


@dataclass
class Tally:
    """What a run has seen so far."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    slowest_s: float = 0.0


def fault_of(status: int, headers: httpx.Headers, text: str) -> str | None:
    """What is wrong with an answer, if anything is."""
    if status >= 500 and not (status == 503 and "retry-after" in headers):
        return "server error"
    if _LEAK.search(text):
        return "tells of the machine"
    if status >= 400:
        return None if _is_error_shape(text) else "shape of the error"
    if _STREAM_ERROR.search(text):
        return "server error in a stream"
    return None


def _is_error_shape(text: str) -> bool:
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(error, dict) and isinstance(error.get("message"), str)


async def send_all(url: str, cases: Iterable[Case], tally: Tally, concurrency: int = CONCURRENCY) -> None:
    """Send every case, ``concurrency`` at a time, and note what comes back."""
    left = iter(cases)
    limits = httpx.Limits(max_connections=concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_WITHIN_S, limits=limits) as client:

        async def worker() -> None:
            for case in left:
                await _send(client, case, tally)

        await asyncio.gather(*(worker() for _ in range(concurrency)))


async def _send(client: httpx.AsyncClient, case: Case, tally: Tally) -> None:
    began = time.perf_counter()
    status, text, fault = 0, "", None
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            try:
                answer = await client.post(case.path, content=case.body, headers=_JSON)
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # The server may close an idle connection just when it is used again: once is no fault.
                answer = await client.post(case.path, content=case.body, headers=_JSON)
        status, text = answer.status_code, answer.text
        fault = fault_of(status, answer.headers, text)
    except (TimeoutError, httpx.TimeoutException):
        fault = f"no answer within {ANSWER_WITHIN_S:.0f} s"
    except httpx.TransportError as error:
        fault, text = "broken connection", repr(error)
    tally.sent += 1
    tally.statuses[str(status)] += 1
    tally.paths[case.path] += 1
    tally.kinds[case.kind] += 1
    tally.slowest_s = max(tally.slowest_s, time.perf_counter() - began)
    if fault is not None:
        tally.findings.append(Finding(fault, status, text, case))


async def engines(url: str) -> dict[str, int]:
    """Process id of every loaded expert's engine."""
    async with httpx.AsyncClient(base_url=url, timeout=ANSWER_WITHIN_S) as client:
        experts = (await client.get("/stats")).json()["experts"]
    return {name: expert["pid"] for name, expert in experts.items() if expert["pid"] is not None}


async def fuzz(
    url: str,
    *,
    first: int,
    last: int,
    seed: int,
    size: int = BATCH,
    experts: Sequence[str] = EXPERT_IDS,
    with_schema: bool = True,
) -> AsyncIterator[tuple[int, Tally]]:
    """Send batches ``first`` to ``last - 1``; yields (next batch, what came back) after each.

    An engine that is another process after a batch than before has died of it, and is a finding.
    """
    schema = None
    if with_schema:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            document = (await client.get("/openapi.json")).json()
        schema = await asyncio.to_thread(SchemaBodies, document, experts)
    coming = asyncio.create_task(asyncio.to_thread(batch, first, size, seed, experts, schema))
    before = await engines(url)
    for number in range(first, last):
        tally = Tally()
        cases = await coming
        if number + 1 < last:
            coming = asyncio.create_task(asyncio.to_thread(batch, number + 1, size, seed, experts, schema))
        await send_all(url, cases, tally)
        after = await engines(url)
        for name, pid in before.items():
            if after.get(name) != pid:
                told = f"{name} ended during batch {number} (seed {seed})"
                tally.findings.append(Finding("engine ended", 0, told, cases[0]))
        before = after
        yield number + 1, tally


def replay(url: str, findings: Path) -> list[tuple[dict[str, Any], int, str]]:
    """Send the bodies of a findings file again: (finding, status, answer) of each."""
    answers = []
    with httpx.Client(base_url=url, timeout=ANSWER_WITHIN_S) as client:
        for line in findings.read_text(encoding="utf-8").splitlines():
            finding = json.loads(line)
            body = base64.b64decode(finding["body"])
            try:
                answer = client.post(
                    finding["path"], content=body, headers={"content-type": "application/json"}
                )
                answers.append((finding, answer.status_code, answer.text))
            except httpx.TransportError as error:
                answers.append((finding, 0, repr(error)))
    return answers


def _load_state(seed: int, fresh: bool) -> dict[str, Any]:
    if STATE.exists() and not fresh:
        state: dict[str, Any] = json.loads(STATE.read_text(encoding="utf-8"))
        if state["seed"] == seed:
            return state
    FINDINGS.unlink(missing_ok=True)
    return {
        "seed": seed, "batch_size": BATCH, "next_batch": 0, "sent": 0, "seconds": 0.0, "slowest_s": 0.0,
        "statuses": {}, "paths": {}, "kinds": {}, "faults": {},
    }  # fmt: skip


def _add(state: dict[str, Any], tally: Tally, next_batch: int, seconds: float) -> None:
    state["next_batch"] = next_batch
    state["sent"] += tally.sent
    state["seconds"] = round(state["seconds"] + seconds, 1)
    state["slowest_s"] = round(max(state["slowest_s"], tally.slowest_s), 2)
    faults = Counter(finding.fault for finding in tally.findings)
    for name, counts in (
        ("statuses", tally.statuses),
        ("paths", tally.paths),
        ("kinds", tally.kinds),
        ("faults", faults),
    ):
        state[name] = dict(sorted((Counter(state[name]) + counts).items()))
    if tally.findings:
        with FINDINGS.open("a", encoding="utf-8") as file:
            file.writelines(finding.line() + "\n" for finding in tally.findings)
    STATE.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def _run(url: str, args: argparse.Namespace) -> None:
    state = _load_state(args.seed, args.fresh)
    state |= {"date": today(), "machine": machine(), "versions": versions()}
    deadline = time.monotonic() + args.minutes * 60
    last = -(-args.count // BATCH)

    async def go_on() -> None:
        since = time.monotonic()
        batches = fuzz(
            url, first=state["next_batch"], last=last, seed=args.seed, with_schema=not args.no_schema
        )
        async for number, tally in batches:
            now = time.monotonic()
            _add(state, tally, number, now - since)
            told = (
                f"{tally.sent / (now - since):.0f}/s, statuses {state['statuses']}, faults {state['faults']}"
            )
            print(f"{state['sent']} sent, {told}", file=sys.stderr, flush=True)
            since = now
            if now > deadline:
                break

    asyncio.run(go_on())
    state["load_average_after"] = load_average()
    STATE.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: state[k] for k in ("sent", "seconds", "slowest_s", "statuses", "faults")}, indent=1))


def main(argv: Sequence[str] | None = None) -> None:
    """Fuzz, or replay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="bodies in all, earlier runs included")
    parser.add_argument("--minutes", type=float, default=15.0, help="stop after so long; run again to go on")
    parser.add_argument("--seed", type=int, default=1, help="which bodies")
    parser.add_argument("--fresh", action="store_true", help="forget earlier runs")
    parser.add_argument("--no-schema", action="store_true", help="mutations only (no schemathesis needed)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send the bodies of FILE again")
    parser.add_argument("--keep-log", type=Path, metavar="FILE", help="copy the server's log there")
    parser.add_argument("--url", help="a server that runs already; default: start one with the demo experts")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "models" / "demo", help="folder of demo experts"
    )
    args = parser.parse_args(argv)
    RESULTS.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        url = args.url
        if url is None:
            make_demo_models(args.models)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-")))
            config = write_config(args.models.resolve(), folder, warmup_pool_size=len(EXPERT_IDS))
            server = stack.enter_context(serving(config, "--disable-uvicorn-access-log"))
            server.wait_until_up()
            for expert in EXPERT_IDS:
                server.chat(expert)
            url = server.url
            if args.keep_log is not None:
                stack.callback(shutil.copy, server.log, args.keep_log)
        if args.replay is None:
            _run(url, args)
            return
        for finding, status, text in replay(url, args.replay):
            print(f"{status} (was {finding['status']}) {finding['path']} {finding['fault']}: {text[:200]}")


if __name__ == "__main__":
    os.nice(10)
    main()
