#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures a real server with the demo experts on this machine: loads, reloads, latency, memory, shutdown.

    python bench/load_times.py            # measure, print the table, write bench/results/load_times.json
    python bench/load_times.py --readme   # the same, and renew the table in README.md

It states what it saw and asserts nothing: a busy machine gives larger figures, and the load average before
the run is part of the result. Times are seconds on the client's clock unless a row says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.machine import RESULTS as RESULTS_FOLDER
from bench.machine import ROOT, described, machine, pss, today, versions
from bench.machine import renewed as with_section
from bench.server_process import Server, serving, write_config
from vllm_axion.demo_models import EXPERT_IDS, make_demo_models

RESULTS = RESULTS_FOLDER / "load_times.json"
COLD_STARTS = 3
RELOADS = 10
CHATS = 200

Samples = dict[str, list[float]]


def measure(config: Path, console: Console) -> tuple[Samples, dict[str, dict[str, int]]]:
    """(samples in seconds, bytes by process) of everything in the table."""
    samples: Samples = {}

    def note(name: str, value: float) -> None:
        samples.setdefault(name, []).append(round(value, 5))
        if name != "chat":
            console.print(f"  {name}: {value:.2f} s", highlight=False)

    memory: dict[str, dict[str, int]] = {}
    for start in range(COLD_STARTS):
        with serving(config) as server:
            note("up", server.wait_until_up())
            server.chat(EXPERT_IDS[0])
            note("first_answer", time.perf_counter() - server.started)
            note("first_load", server.stats(EXPERT_IDS[0])["load_seconds"]["last"])
            for expert in EXPERT_IDS[1:]:
                note("cold_load", server.chat(expert)[1])
            if start == 0:
                _measure_loaded(server, note)
                memory = {
                    "experts": {e: pss(server.stats(e)["pid"]) for e in EXPERT_IDS},
                    "server": server.shared_memory_holders(),
                }
            note("shutdown", server.stop())
    return samples, memory


def _measure_loaded(server: Server, note: Any) -> None:
    for turn in range(RELOADS):
        expert = EXPERT_IDS[turn % len(EXPERT_IDS)]
        note("unload", server.unload(expert))
        note("reload", server.chat(expert)[1])
    for turn in range(CHATS):
        note("chat", server.chat(EXPERT_IDS[turn % len(EXPERT_IDS)])[0])


# --- The table ----------------------------------------------------------------------------------------------

_ROWS = (
    ("up", "`/health` answers after the command was typed", 1.0),
    ("first_answer", "first chat answered after the command was typed, its expert loaded on the way", 1.0),
    ("first_load", "first load after start (by the server's clock)", 1.0),
    ("cold_load", "load of an expert for the first time, after that", 1.0),
    ("reload", "load of an expert again after an unload", 1.0),
    ("unload", "unload, until the expert's process is gone", 1.0),
    ("chat", "chat of one token with a loaded expert, over HTTP", 1000.0),
    ("shutdown", "shutdown with five experts loaded, SIGTERM to the end of the process", 1.0),
)


def table(result: dict[str, Any]) -> str:
    """The Markdown of one result, with the machine it is of."""
    lines = ["| measured | median | least to most | samples |", "| --- | ---: | ---: | ---: |"]
    for name, meaning, factor in _ROWS:
        values = sorted(value * factor for value in result["samples"][name])
        unit = "s" if factor == 1.0 else "ms"
        middle, spread = _number(statistics.median(values)), f"{_number(values[0])} to {_number(values[-1])}"
        lines.append(f"| {meaning} | {middle} {unit} | {spread} {unit} | {len(values)} |")
    experts = sorted(size / 2**20 for size in result["memory"]["experts"].values())
    meaning = "memory of a loaded demo expert's process (PSS, 64 MiB of it KV cache)"
    spread = f"{experts[0]:.0f} to {experts[-1]:.0f} MiB"
    lines.append(f"| {meaning} | {statistics.median(experts):.0f} MiB | {spread} | {len(experts)} |")
    for name, size in result["memory"]["server"].items():
        lines.append(f"| memory of the {name} (PSS) | {size / 2**20:.0f} MiB | | 1 |")
    footer = f"Measured on {result['date']} by `bench/load_times.py`: {described(result)}"
    lines += ["", footer]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def renewed(page: str, result: dict[str, Any]) -> str:
    """The page with the table between its markers replaced."""
    return with_section(page, "measured", table(result))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", type=Path, default=ROOT / "models" / "demo", help="folder of demo experts"
    )
    parser.add_argument("--readme", action="store_true", help="renew the table in README.md")
    args = parser.parse_args(argv)
    console = Console(stderr=True)
    models = args.models.resolve()
    make_demo_models(models)
    result: dict[str, Any] = {
        "date": today(),
        "machine": machine(),
        "versions": versions(),
    }
    with tempfile.TemporaryDirectory(prefix="load-times-") as folder:
        samples, memory = measure(write_config(models, Path(folder)), console)
    result |= {"samples": samples, "memory": memory}
    print(table(result))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.readme:
        readme = ROOT / "README.md"
        readme.write_text(renewed(readme.read_text(encoding="utf-8"), result), encoding="utf-8")


if __name__ == "__main__":
    main()
