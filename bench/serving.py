#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the server under load against its targets, and against vLLM's own server on the same machine.

    python bench/serving.py             # all of it, some minutes; writes bench/results/serving.json and .png
    python bench/serving.py --quick     # the same with few samples, to see that it runs
    python bench/serving.py --readme    # the same as the first, and renews the table in docs/performance.md

Comparisons are paired: both sides run one after the other, in turn, in the same run, and a ratio or
difference is taken within each pair; ranges are 95 % confidence intervals by the bootstrap. "Stock"
is `vllm serve MODEL --enforce-eager` with the same model, memory and limits as the expert.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from bench.machine import RESULTS, ROOT, described, load_average, machine, pss, renewed, today, versions
from bench.paired import geometric_mean, median, percentile
from bench.plots import figure_of_bars
from bench.server_process import Server, ServerProcess, serving, write_config
from bench.streams import Streams
from vllm_axion.demo_models import EXPERT_IDS, make_demo_models
from vllm_axion.serving.machine_memory import process_memory

RESULT = RESULTS / "serving.json"
PAGE = ROOT / "docs" / "performance.md"
STREAMS = 16
EXPERT, SECOND = "qwen_coder", "mistral_balanced"
BURST = 200

Figures = dict[str, Any]


class Sizes:
    """How many samples of each figure."""

    def __init__(self, quick: bool) -> None:
        self.stock_starts = 1 if quick else 2
        self.latency_pairs = 50 if quick else 500
        self.stream_pairs = 2 if quick else 10
        self.tokens = 32 if quick else 64
        self.health_seconds = 4.0 if quick else 12.0


def stock(models: Path, expert: dict[str, Any], log: Path) -> ServerProcess:
    """vLLM's own server with an expert's model, started."""
    command = [str(Path(sys.executable).with_name("vllm")), "serve", str(models / expert["expert_id"])]
    options = {
        "--served-model-name": expert["expert_id"],
        "--dtype": expert["dtype"],
        "--max-model-len": expert["max_model_len"],
        "--max-num-seqs": expert["max_num_seqs"],
        "--max-num-batched-tokens": expert["engine_args"]["max_num_batched_tokens"],
        "--kv-cache-memory-bytes": int(expert["kv_cache_memory"].removesuffix("MiB")) * 2**20,
        "--host": "127.0.0.1",
    }
    flags = [str(word) for option in options.items() for word in option]
    return ServerProcess([*command, "--enforce-eager", *flags], log)


def first_answer(server: ServerProcess, expert: str) -> float:
    """Seconds from the start of the command to the end of its first chat."""
    server.wait_until_up()
    body = {"model": expert, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    while True:
        answer = server.client.post("/v1/chat/completions", json=body)
        if answer.status_code == 200:
            return time.perf_counter() - server.started
        if server.process.poll() is not None:
            raise SystemExit(f"vLLM's own server ended:\n{server.log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


# --- One figure after the other ------------------------------------------------------------------------


def loads(config: Path, models: Path, sizes: Sizes, console: Console) -> Figures:
    """Cold loads after the first, reloads, and vLLM's own start with the same models."""
    experts = {e["expert_id"]: e for e in json.loads(config.read_text())["experts"]}
    cold, again, starts = [], [], []
    with serving(config) as server:
        server.wait_until_up()
        server.chat(EXPERT_IDS[0])
        for turn, name in enumerate(EXPERT_IDS[1:]):
            cold.append(server.chat(name)[0])
            server.unload(name)
            again.append(server.chat(name)[0])
            if turn < sizes.stock_starts:
                with stock(models, experts[name], config.with_name(f"stock-{name}.log")) as other:
                    starts.append(first_answer(other, name))
                console.print(f"  {name}: {cold[-1]:.2f} s, {again[-1]:.2f} s, stock {starts[-1]:.1f} s")
        memory = _expert_memory(server)
        server.stop()
    pairs = range(len(starts))
    return {
        "second_cold_load_s": median(cold).rounded(3),
        "reload_s": median(again).rounded(3),
        "stock_first_answer_s": median(starts).rounded(2),
        "stock_to_cold_load": geometric_mean([starts[n] / cold[n] for n in pairs]).rounded(1),
        "stock_to_reload": geometric_mean([starts[n] / again[n] for n in pairs]).rounded(1),
        "samples": {"cold": cold, "reload": again, "stock": starts},
        **memory,
    }


def _expert_memory(server: Server) -> Figures:
    """PSS of the engines and their template, less weights and KV caches, per expert (bytes)."""
    held = {}
    known = 0
    for name in EXPERT_IDS:
        server.chat(name)
    for name in EXPERT_IDS:
        stats = server.stats(name)
        held[name] = pss(stats["pid"])
        known += stats["memory"]["weights_bytes"] + stats["memory"]["kv_bytes"]
    template = pss(server.template_pid())
    overhead = (sum(held.values()) + template - known) / len(EXPERT_IDS)
    return {
        "overhead_bytes_per_expert": round(overhead),
        "memory": {
            "experts_pss": held,
            "experts_private": {name: _private(server.stats(name)["pid"]) for name in EXPERT_IDS},
            "template_pss": template,
            "api_pss": pss(server.process.pid),
            "weights_and_kv": known,
        },
    }


def _private(pid: int) -> int:
    """Bytes no other process shares."""
    memory = process_memory(pid)
    return memory.rss - memory.shared


def added_latency(config: Path, sizes: Sizes) -> Figures:
    """What the server's own app adds to a chat of one token (seconds in, milliseconds out)."""
    output = config.with_name("latency.json")
    subprocess.run(
        [
            *(sys.executable, "-m", "bench.added_latency", str(config), str(output)),
            *("--pairs", str(sizes.latency_pairs), "--expert", EXPERT),
        ],
        check=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        timeout=600,
    )
    found = json.loads(output.read_text(encoding="utf-8"))
    differences = [
        1000 * (outer - inner) for outer, inner in zip(found["outer"], found["inner"], strict=True)
    ]
    return {
        "added_ms": median(differences).rounded(3),
        "within_ms": median([1000 * seconds for seconds in found["within"]]).rounded(3),
        "inner_ms": round(1000 * statistics.median(found["inner"]), 2),
        "outer_ms": round(1000 * statistics.median(found["outer"]), 2),
    }


def _paired_rates(
    first: Callable[[], float], second: Callable[[], float], pairs: int
) -> tuple[list[float], list[float]]:
    """Rates of two sides in turn, each first in half of the pairs; one run of each before is not counted."""
    first(), second()
    rates: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs):
        order = ((0, first), (1, second)) if turn % 2 == 0 else ((1, second), (0, first))
        for side, run in order:
            rates[side].append(run())
    return rates


def throughput(config: Path, models: Path, sizes: Sizes) -> Figures:
    """Streams on one expert against vLLM's own server, and on one expert against two."""
    expert = next(e for e in json.loads(config.read_text())["experts"] if e["expert_id"] == EXPERT)
    with Streams() as streams, serving(config, "--disable-uvicorn-access-log") as server:
        server.wait_until_up()
        for name in (EXPERT, SECOND):
            server.chat(name)

        def rate(url: str, *experts: str) -> float:
            return streams.run(url, experts, STREAMS, sizes.tokens).rate

        with stock(models, expert, config.with_name("stock.log")) as other:
            first_answer(other, EXPERT)
            ours, theirs = _paired_rates(
                lambda: rate(server.url, EXPERT), lambda: rate(other.url, EXPERT), sizes.stream_pairs
            )
        two, one = _paired_rates(
            lambda: rate(server.url, EXPERT, SECOND), lambda: rate(server.url, EXPERT), sizes.stream_pairs
        )
        engines = {name: server.stats(name)["pid"] for name in (EXPERT, SECOND)}
        parts = {"API process": server.process.pid, "client": streams.pid, **engines}

        def work(*experts: str) -> dict[str, float]:
            before = {name: _cpu_seconds(pid) for name, pid in parts.items()}
            tokens = streams.run(server.url, experts, STREAMS, sizes.tokens).tokens
            return {
                name: round(1e6 * (_cpu_seconds(pid) - before[name]) / tokens) for name, pid in parts.items()
            }

        cpu = {"one_expert": work(EXPERT), "two_experts": work(EXPERT, SECOND)}
        server.stop()
    return {
        "cpu_us_per_token": cpu,
        "to_stock": geometric_mean([a / b for a, b in zip(ours, theirs, strict=True)]).rounded(4),
        "two_to_one": geometric_mean([a / b for a, b in zip(two, one, strict=True)]).rounded(4),
        "tokens_per_s": {
            "ours": ours,
            "stock": theirs,
            "two_experts": two,
            "one_expert": one,
        },
    }


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def health(config: Path, sizes: Sizes) -> Figures:
    """`/health` every 10 ms, while sixteen streams run on one expert and others load and unload beside it."""
    waits: list[float] = []
    loads_seen = 0
    with Streams() as streams, serving(config, "--disable-uvicorn-access-log") as server:
        server.wait_until_up()
        server.chat(EXPERT)
        over = threading.Event()

        def probe() -> None:
            with httpx.Client(base_url=server.url, timeout=30) as client:
                while not over.is_set():
                    began = time.perf_counter()
                    client.get("/health")
                    waits.append(1000 * (time.perf_counter() - began))
                    time.sleep(max(0.0, 0.01 - (time.perf_counter() - began)))

        quiet = _probe_for(server, 1.0)
        streams.begin(server.url, [EXPERT], STREAMS, 900)
        prober = threading.Thread(target=probe)
        prober.start()
        others = [name for name in EXPERT_IDS if name != EXPERT]
        end = time.monotonic() + sizes.health_seconds
        running = threading.Thread(target=streams.result)
        running.start()
        while time.monotonic() < end or not loads_seen:
            name = others[loads_seen % len(others)]
            server.chat(name)
            loads_seen += 1
            server.unload(name)
            if not running.is_alive():
                streams.begin(server.url, [EXPERT], STREAMS, 900)
                running = threading.Thread(target=streams.result)
                running.start()
        over.set()
        prober.join()
    return {
        "p50_ms": round(percentile(waits, 0.5), 2),
        "p99_ms": round(percentile(waits, 0.99), 2),
        "most_ms": round(max(waits), 2),
        "answers": len(waits),
        "loads": loads_seen,
        "quiet_p99_ms": round(percentile(quiet, 0.99), 2),
    }


def _probe_for(server: Server, seconds: float) -> list[float]:
    waits: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        server.client.get("/health")
        waits.append(1000 * (time.perf_counter() - began))
        time.sleep(0.01)
    return waits


def burst(models: Path, folder: Path) -> Figures:
    """200 chats at once for five experts of which none is loaded and two may be."""
    folder.mkdir()
    config = write_config(models, folder, max_loaded_experts=2)
    with serving(config) as server:
        server.wait_until_up()

        async def ask_all() -> list[httpx.Response]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
                bodies = [
                    {
                        "model": EXPERT_IDS[n % len(EXPERT_IDS)],
                        "messages": [{"role": "user", "content": f"Question {n}"}],
                        "max_tokens": 4,
                    }
                    for n in range(BURST)
                ]
                return await asyncio.gather(
                    *(client.post("/v1/chat/completions", json=body) for body in bodies)
                )

        began = time.perf_counter()
        answers = asyncio.run(ask_all())
        took = time.perf_counter() - began
        loads_made = sum(server.stats(name)["loads"] for name in EXPERT_IDS)
        server.stop()
    refused = [a for a in answers if a.status_code in (429, 503)]
    good = sum(a.status_code == 200 for a in answers) + sum("retry-after" in a.headers for a in refused)
    return {
        "statuses": dict(sorted(Counter(str(a.status_code) for a in answers).items())),
        "answered_or_told_when": good,
        "loads": loads_made,
        "seconds": round(took, 1),
    }


# --- The table -------------------------------------------------------------------------------------------


def rows(result: dict[str, Any]) -> list[tuple[str, str, str, float, float, float]]:
    """(figure, measured, target, share of the target, least, most), a share up to 1 meeting the target."""

    def span(found: dict[str, float], unit: str, factor: float = 1.0) -> str:
        low, high = found["ci95_low"] * factor, found["ci95_high"] * factor
        return f"{found['value'] * factor:.3g}{unit} ({low:.3g} to {high:.3g})"

    def at_most(found: dict[str, float], limit: float) -> tuple[float, float, float]:
        return found["value"] / limit, found["ci95_low"] / limit, found["ci95_high"] / limit

    def at_least(found: dict[str, float], limit: float) -> tuple[float, float, float]:
        return limit / found["value"], limit / found["ci95_high"], limit / found["ci95_low"]

    load, latency, rate = result["loads"], result["latency"], result["throughput"]
    alive, first = result["health"], result["burst"]
    overhead = load["overhead_bytes_per_expert"] / 1e6
    healthy, loads_share = alive["p99_ms"] / 50, first["loads"] / 10
    told = f"{first['answered_or_told_when']} of {BURST} answered or told when, {first['loads']} loads"
    missed = BURST - first["answered_or_told_when"]
    found = [
        (
            "second cold load, to the first answer",
            span(load["second_cold_load_s"], " s"),
            "1.5 s",
            *at_most(load["second_cold_load_s"], 1.5),
        ),
        ("reload, to the first answer", span(load["reload_s"], " s"), "1.0 s", *at_most(load["reload_s"], 1)),
        (
            f"reload against stock `vllm serve` ({load['stock_first_answer_s']['value']:.0f} s)",
            span(load["stock_to_reload"], "x"),
            "30x",
            *at_least(load["stock_to_reload"], 30),
        ),
        (
            f"latency added to a 1-token chat of {latency['inner_ms']:.1f} ms, p50",
            span(latency["added_ms"], " ms"),
            "0.15 ms",
            *at_most(latency["added_ms"], 0.15),
        ),
        (
            "throughput of 16 streams against stock",
            span(rate["to_stock"], " %", 100),
            "98 %",
            *at_least(rate["to_stock"], 0.98),
        ),
        (
            "memory per loaded expert beside weights and KV cache, template included",
            f"{overhead:.0f} MB",
            "250 MB",
            *(overhead / 250,) * 3,
        ),
        (
            "16 streams over two experts against 16 on one, summed",
            span(rate["two_to_one"], "x"),
            "0.9x",
            *at_least(rate["two_to_one"], 0.9),
        ),
        (
            f"`/health` p99 (p50 {alive['p50_ms']:.1f} ms) while experts load and 16 streams run",
            f"{alive['p99_ms']:.1f} ms",
            "50 ms",
            *(healthy,) * 3,
        ),
        (
            "200 first requests at once to five cold experts, room for two",
            told,
            "all, 10 loads",
            *(loads_share + missed,) * 3,
        ),
    ]
    soak = result.get("soak")
    if soak is not None:
        grown = soak["growth"]["memory_mb_per_expert_20_swaps"]
        counts = [soak["growth"][name] for name in ("descriptors", "processes", "shared_memory")]
        share = max(grown / 5, 0.0) + sum(max(0, count) for count in counts)
        found.insert(
            6,
            (
                "growth in 20 swaps: memory per expert; descriptors, processes, shared memory",
                f"{grown:.1f} MB; {', '.join(str(count) for count in counts)}",
                "5 MB; 0, 0, 0",
                *(share,) * 3,
            ),
        )
    return found


def table(result: dict[str, Any]) -> str:
    """The Markdown of one result."""
    lines = ["| figure | measured | target | met |", "| --- | ---: | ---: | --- |"]
    for name, measured, target, share, _, _ in rows(result):
        lines.append(f"| {name} | {measured} | {target} | {'yes' if share <= 1 else '**no**'} |")
    busy = f"; {result['load_average_after']} after it"
    footer = f"Measured on {result['date']} on x86-64 by `bench/serving.py`: {described(result)}"
    before, after = footer.split(" before the run", 1)
    return "\n".join([*lines, "", f"{before} before the run{busy}{after}"])


def plot(result: dict[str, Any], path: Path) -> None:
    """Every figure as a share of its target."""
    bars = [(name.replace("`", ""), share, least, most) for name, _, _, share, least, most in rows(result)]
    figure_of_bars(path, f"Figures against their targets, x86-64, {result['date']}", bars)


def measure(models: Path, folder: Path, sizes: Sizes, console: Console) -> dict[str, Any]:
    """Every figure of the table but the soak's."""
    config = write_config(models, folder)
    streams_config = json.loads(config.read_text())
    for expert in streams_config["experts"]:
        expert["max_num_seqs"] = STREAMS
    found: dict[str, Any] = {}
    steps: dict[str, Callable[[], Figures]] = {
        "latency": lambda: added_latency(config, sizes),
        "loads": lambda: loads(config, models, sizes, console),
        "throughput": lambda: throughput(many, models, sizes),
        "health": lambda: health(many, sizes),
        "burst": lambda: burst(models, folder / "burst"),
    }
    (folder / "streams").mkdir()
    many = folder / "streams" / "config.json"
    many.write_text(json.dumps(streams_config), encoding="utf-8")
    for name, step in steps.items():
        before, began = load_average(), time.perf_counter()
        found[name] = step()
        took = time.perf_counter() - began
        found[name] |= {"load_average": [before, load_average()], "took_s": round(took, 1)}
        shown = {key: value for key, value in found[name].items() if key not in ("samples", "tokens_per_s")}
        console.print(f"{name}: {json.dumps(shown)}", highlight=False, soft_wrap=True)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples; writes no results")
    parser.add_argument("--readme", action="store_true", help="renew the table in docs/performance.md")
    parser.add_argument("--table-only", action="store_true", help="measure nothing: table of the last run")
    parser.add_argument(
        "--models", type=Path, default=ROOT / "models" / "demo", help="folder of demo experts"
    )
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    if args.table_only:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
    else:
        make_demo_models(args.models)
        result = {"date": today(), "machine": machine(), "versions": versions()}
        with tempfile.TemporaryDirectory(prefix="serving-") as folder:
            result |= measure(args.models.resolve(), Path(folder), Sizes(args.quick), console)
        result["load_average_after"] = load_average()
    soak = RESULTS / "soak.json"
    if soak.exists():
        result["soak"] = {"growth": json.loads(soak.read_text(encoding="utf-8"))["growth"]}
    print(table(result))
    if args.quick:
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, RESULT.with_suffix(".png"))
    if args.readme:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(renewed(page, "serving", table(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
