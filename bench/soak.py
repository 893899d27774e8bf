#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads and unloads every expert again and again under traffic, and watches what the server keeps.

    python bench/soak.py --minutes 30        # until then; at least `--swaps` swaps of each expert
    python bench/soak.py --swaps 20          # 20 swaps of each

Five experts with vocabularies of real size (32,768 entries) share a server with room for two. In each round
every expert is asked in turn, so that each request loads one expert and evicts another; beside that run
streams, clients that leave in the middle of a stream or of a load, and a scrape of /metrics every second.
Between rounds everything is unloaded and the server is looked at while it rests: memory of the API process
and of the engine template, descriptors, processes, threads, shared memory, files in the run directory.
Writes bench/results/soak.json and soak.png.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import RESULTS, load_average, machine, pss, today, versions
from bench.plots import figure_of_lines
from bench.server_process import Server, serving, write_config
from vllm_axion import envs
from vllm_axion.demo_models import EXPERT_IDS, make_demo_models
from vllm_axion.serving.machine_memory import process_memory

VOCABULARY = 32_768
RESULT = RESULTS / "soak.json"
WARM_UP_ROUNDS = 2
"""Rounds before growth is counted: caches that fill once are not growth."""

_SHARED_MEMORY = Path("/dev/shm")
_GIVE_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class AtRest:
    """What the server holds while no expert is loaded and nobody asks anything (bytes, and counts)."""

    seconds: float
    round: int
    swaps: int
    api_pss: int
    api_anonymous: int
    template_pss: int
    template_anonymous: int
    descriptors: int
    template_descriptors: int
    processes: int
    threads: int
    shared_memory: int
    run_files: int


class Watcher:
    """Reads what a resting server holds."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._began = time.monotonic()
        self._ours: set[str] = set()

    def look(self, round_number: int) -> AtRest:
        """What is held now; every expert must be unloaded."""
        api = psutil.Process(self._server.process.pid)
        template = psutil.Process(self._server.template_pid())
        experts = self._server.client.get("/stats").json()["experts"]
        return AtRest(
            seconds=round(time.monotonic() - self._began, 1),
            round=round_number,
            swaps=sum(expert["unloads"] for expert in experts.values()),
            api_pss=pss(api.pid),
            api_anonymous=process_memory(api.pid).anonymous,
            template_pss=pss(template.pid),
            template_anonymous=process_memory(template.pid).anonymous,
            descriptors=api.num_fds(),
            template_descriptors=template.num_fds(),
            processes=len(api.children(recursive=True)),
            threads=api.num_threads(),
            shared_memory=len(self._shared_memory()),
            run_files=sum(1 for folder in self._run_directories(api.pid) for _ in folder.rglob("*")),
        )

    def note_shared_memory(self) -> None:
        """Remember the names in /dev/shm that this server's processes have mapped now: those are its own."""
        for process in psutil.Process(self._server.process.pid).children(recursive=True):
            with contextlib.suppress(OSError):
                mapped = Path(f"/proc/{process.pid}/maps").read_text(errors="replace")
                self._ours.update(re.findall(rf"{_SHARED_MEMORY}/(\S+)", mapped))

    def _shared_memory(self) -> set[str]:
        with contextlib.suppress(OSError):
            return self._ours & {entry.name for entry in _SHARED_MEMORY.iterdir()}
        return set()

    @staticmethod
    def _run_directories(pid: int) -> Iterator[Path]:
        for parent in {Path(tempfile.gettempdir()), Path("/tmp")}:
            yield from parent.glob(f"vllm-axion-{pid}-*")


class Traffic:
    """Clients of every kind, in threads of their own, that can be told to pause."""

    def __init__(self, url: str, experts: Sequence[str], seed: int) -> None:
        self._url = url
        self._experts = experts
        self._chance = random.Random(seed)
        self._go = threading.Event()
        self._end = threading.Event()
        self._busy = 0
        self._lock = threading.Lock()
        self.seen: Counter[str] = Counter()
        self._threads = [
            threading.Thread(target=self._run, args=(work,), daemon=True)
            for work in (self._stream, self._stream, self._leave_a_stream, self._leave_a_load, self._scrape)
        ]
        for thread in self._threads:
            thread.start()

    def go(self) -> None:
        """Begin, or go on."""
        self._go.set()

    def pause(self) -> None:
        """Return once no request of these clients is under way."""
        self._go.clear()
        deadline = time.monotonic() + _GIVE_UP_S
        while self._busy and time.monotonic() < deadline:
            time.sleep(0.02)

    def end(self) -> None:
        """Stop for good."""
        self._end.set()
        self._go.set()
        for thread in self._threads:
            thread.join(_GIVE_UP_S)

    def _run(self, work: Any) -> None:
        with httpx.Client(base_url=self._url, timeout=_GIVE_UP_S) as client:
            while not self._end.is_set():
                self._go.wait()
                with self._lock:
                    self._busy += 1
                try:
                    if self._go.is_set() and not self._end.is_set():
                        work(client)
                except httpx.HTTPError as error:
                    self.seen[f"{type(error).__name__} in {work.__name__}"] += 1
                finally:
                    with self._lock:
                        self._busy -= 1
                time.sleep(0.05 + 0.3 * self._chance.random())

    def _loaded(self, client: httpx.Client) -> str | None:
        """An expert that is loaded, so that asking it loads nothing."""
        experts = client.get("/stats").json()["experts"]
        there = [name for name, expert in experts.items() if expert["state"] == "loaded"]
        return self._chance.choice(there) if there else None

    def _body(self, expert: str, tokens: int) -> dict[str, Any]:
        words = " ".join(self._chance.choice(("uno", "two", "drei", "quatre", "пять")) for _ in range(20))
        messages = [{"role": "user", "content": words}]
        return {"model": expert, "messages": messages, "max_tokens": tokens, "stream": True}

    def _stream(self, client: httpx.Client) -> None:
        if (expert := self._loaded(client)) is None:
            return
        with client.stream("POST", "/v1/chat/completions", json=self._body(expert, 16)) as answer:
            for _ in answer.iter_lines():
                pass
        self.seen[f"stream {answer.status_code}"] += 1

    def _leave_a_stream(self, client: httpx.Client) -> None:
        if (expert := self._loaded(client)) is None:
            return
        with client.stream("POST", "/v1/chat/completions", json=self._body(expert, 500)) as answer:
            next(answer.iter_lines(), None)
        self.seen["left a stream"] += 1

    def _leave_a_load(self, client: httpx.Client) -> None:
        expert = self._chance.choice(self._experts)
        with contextlib.suppress(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=self._body(expert, 1), timeout=0.3)
        self.seen["left early"] += 1
        time.sleep(2)

    def _scrape(self, client: httpx.Client) -> None:
        client.get("/metrics").raise_for_status()
        self.seen["scrape"] += 1
        time.sleep(0.8)


def swap_all(server: Server, watcher: Watcher, experts: Sequence[str], seen: Counter[str]) -> None:
    """Ask every expert once, each of which must be loaded for it."""
    for expert in experts:
        body = {"model": expert, "messages": [{"role": "user", "content": "Hola"}], "max_tokens": 2}
        answer = server.client.post("/v1/chat/completions", json=body)
        seen[f"swap {answer.status_code}"] += 1
        watcher.note_shared_memory()


def unload_all(server: Server) -> None:
    """Return when no expert is loaded, loading or leaving, and nothing is in flight."""
    deadline = time.monotonic() + _GIVE_UP_S
    while True:
        experts = server.client.get("/stats").json()["experts"]
        busy = [name for name, e in experts.items() if e["state"] not in ("unloaded", "failed")]
        if not busy and not any(e["in_flight"] or e["queue"] for e in experts.values()):
            return
        if time.monotonic() > deadline:
            raise SystemExit(f"the server did not come to rest: {experts}")
        for name in busy:
            server.client.post("/models/unload", json={"model": name})
        time.sleep(0.2)


def soak(
    config: Path,
    *,
    experts: Sequence[str] = EXPERT_IDS,
    minutes: float = 0.0,
    swaps: int = 20,
    seed: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Swap until ``minutes`` are over and every expert was swapped ``swaps`` times after the warm-up."""
    with serving(config, "--disable-uvicorn-access-log") as server:
        server.wait_until_up()
        watcher, traffic = Watcher(server), Traffic(server.url, experts, seed)
        samples: list[AtRest] = []
        began = time.monotonic()
        number = 0
        while number <= swaps + WARM_UP_ROUNDS or time.monotonic() - began < minutes * 60:
            traffic.go()
            swap_all(server, watcher, experts, traffic.seen)
            traffic.pause()
            unload_all(server)
            time.sleep(1.2)  # a disconnect that was just noticed, a thread that is about to end
            samples.append(watcher.look(number))
            if not quiet:
                print(_line(samples[-1]), file=sys.stderr, flush=True)
            number += 1
        traffic.end()
        states = server.client.get("/stats").json()["experts"]
        server.stop()
    return {
        "samples": [asdict(sample) for sample in samples],
        "growth": growth(samples, len(experts)),
        "requests": dict(sorted(traffic.seen.items())),
        "loads": {name: state["loads"] for name, state in states.items()},
        "errors": sorted({state["error"] for state in states.values() if state["error"]}),
    }


def _line(sample: AtRest) -> str:
    api, template = sample.api_anonymous / 2**20, sample.template_anonymous / 2**20
    return (
        f"{sample.seconds:7.0f} s  round {sample.round:3d}  {sample.swaps:4d} unloads  API {api:.1f} MiB"
        f"  template {template:.1f} MiB  {sample.descriptors}+{sample.template_descriptors} descriptors"
        f"  {sample.processes} processes  {sample.threads} threads  {sample.shared_memory} shared"
        f"  {sample.run_files} files"
    )


def growth(samples: Sequence[AtRest], experts: int) -> dict[str, float]:
    """What grew from the first resting sample after the warm-up to the last.

    Memory (anonymous pages of API process and template together, which neighbours on the machine do not
    change) is given in MB per expert, scaled to 20 swaps of each by the median slope between all pairs of
    samples (Theil-Sen); counts as the difference between the last three samples' least and the first.
    """
    kept = samples[WARM_UP_ROUNDS:] or samples
    first, last = kept[0], kept[-3:]
    held = [(s.round, s.api_anonymous + s.template_anonymous) for s in kept]
    slopes = sorted((b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(held) for b in held[i + 1 :])
    per_round = slopes[len(slopes) // 2] if slopes else 0.0
    counts = ("descriptors", "template_descriptors", "processes", "threads", "shared_memory", "run_files")
    return {
        "rounds": kept[-1].round - first.round,
        "memory_mb_per_expert_20_swaps": round(per_round * 20 / experts / 1e6, 3),
        "memory_mb_first_to_last": round((held[-1][1] - held[0][1]) / 1e6, 3),
        **{name: min(getattr(s, name) for s in last) - getattr(first, name) for name in counts},
    }


def soak_models(vocabulary: int = VOCABULARY) -> Path:
    """Demo experts with a vocabulary of that size, made once per machine."""
    folder = envs.cache_directory() / f"soak-models-{vocabulary}"
    make_demo_models(folder, vocab_size=vocabulary)
    return folder


def plot(result: dict[str, Any], path: Path) -> None:
    """Memory and counts over time."""
    samples = result["samples"]
    minutes = [s["seconds"] / 60 for s in samples]
    lines = {
        "memory at rest (anonymous, MiB)": {
            "API process": [s["api_anonymous"] / 2**20 for s in samples],
            "engine template": [s["template_anonymous"] / 2**20 for s in samples],
        },
        "counts at rest": {
            name.replace("_", " "): [s[name] for s in samples]
            for name in ("descriptors", "processes", "threads", "shared_memory", "run_files")
        },
    }
    title = f"{samples[-1]['swaps']} unloads of {len(result['loads'])} experts, x86-64, {result['date']}"
    figure_of_lines(path, title, "minutes", minutes, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Soak, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=0.0, help="at least so long")
    parser.add_argument("--swaps", type=int, default=20, help="at least so many of each expert")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, help="entries of each tokenizer")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON to write; the plot goes beside it")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"date": today(), "machine": machine(), "versions": versions()}
    result["vocabulary"] = args.vocabulary
    models = soak_models(args.vocabulary)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        config = write_config(models, Path(folder), max_loaded_experts=2, min_residency_s=0)
        result |= soak(config, minutes=args.minutes, swaps=args.swaps)
    result["load_average_after"] = load_average()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, args.output.with_suffix(".png"))
    print(json.dumps({key: result[key] for key in ("growth", "requests", "loads", "errors")}, indent=1))


if __name__ == "__main__":
    main()
