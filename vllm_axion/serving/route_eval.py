# SPDX-License-Identifier: Apache-2.0
"""How well a router routes a labelled file: accuracy with intervals, calibration, confidence, latency.

A file has lines `domain<TAB>text` (`\\n` for a line break in the text, `#` before comments). Beside
`name.tsv` may stand `name_meta.tsv`, line for line `language<TAB>group`. Judged is the likeliest domain; what
the router does when it is unsure is told apart, as `routed_accuracy` and `coverage`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from vllm_axion.serving.semantic_router import SemanticRouter

BINS = 10
COVERAGE = 0.85
_Z = 1.959963984540054  # 95 %, two-sided


class RouteEvalError(ValueError):
    """The file cannot be evaluated; one line says where and why."""


@dataclass(frozen=True)
class Labelled:
    """One line of the file."""

    domain: str
    text: str
    language: str = "unknown"
    group: str = "all"


@dataclass(frozen=True)
class Answer:
    """What a router said of one line. `chosen` is where it went: after an abstention maybe elsewhere."""

    domain: str
    confidence: float
    chosen: str
    abstained: bool
    ms: float


def read_labelled(path: Path, domains: Sequence[str]) -> list[Labelled]:
    """Raises RouteEvalError for a line of another form or a domain that is not among `domains`, OSError."""
    rows: list[Labelled] = []
    beside = path.with_name(f"{path.stem}_meta{path.suffix}")
    meta = _lines(beside) if beside.is_file() else []
    lines = _lines(path)
    if meta and len(meta) != len(lines):
        raise RouteEvalError(f"{beside.name}: {len(meta)} lines, but {path.name} has {len(lines)}")
    for place, (number, line) in enumerate(lines):
        domain, tab, text = line.partition("\t")
        if not tab or not text:
            raise RouteEvalError(f"{path.name}:{number}: not of the form domain<TAB>text")
        if domain not in domains:
            raise RouteEvalError(f"{path.name}:{number}: domain {domain!r} is none of {', '.join(domains)}")
        language, _, group = meta[place][1].partition("\t") if meta else ("unknown", "", "all")
        rows.append(Labelled(domain, text.replace("\\n", "\n"), language, group or "all"))
    if not rows:
        raise RouteEvalError(f"{path.name}: no lines to evaluate")
    return rows


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RouteEvalError(f"{path.name}: not UTF-8") from None
    return [
        (number, line)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip() and not line.startswith("#")
    ]


def ask(router: SemanticRouter, text: str) -> Answer:
    """Route one message with nothing loaded."""
    began = time.perf_counter()
    route = router.route([{"role": "user", "content": text}])
    ms = (time.perf_counter() - began) * 1000.0
    best = max(route.probabilities, key=lambda domain: route.probabilities[domain])
    return Answer(best, route.probabilities[best], route.domain, route.abstained, ms)


def evaluate(rows: Sequence[Labelled], asked: Callable[[str], Answer]) -> dict[str, Any]:
    """Figures of a router, as JSON. Every text is asked once before, so that caches are as warm as in use."""
    for row in rows[:20]:
        asked(row.text)
    answers = [asked(row.text) for row in rows]
    return figures(rows, answers)


def figures(rows: Sequence[Labelled], answers: Sequence[Answer]) -> dict[str, Any]:
    """The figures of answers to `rows`."""
    right = np.array([row.domain == answer.domain for row, answer in zip(rows, answers, strict=True)])
    chosen = np.array([row.domain == answer.chosen for row, answer in zip(rows, answers, strict=True)])
    confidence = np.array([answer.confidence for answer in answers])
    kept = np.array([not answer.abstained for answer in answers])
    domains = list(dict.fromkeys([row.domain for row in rows] + [answer.domain for answer in answers]))
    confusion = {label: dict.fromkeys(domains, 0) for label in domains}
    for row, answer in zip(rows, answers, strict=True):
        confusion[row.domain][answer.domain] += 1
    confident = np.argsort(-confidence, kind="stable")[: math.ceil(COVERAGE * len(rows))]
    took = np.array([answer.ms for answer in answers])
    return {
        "examples": len(rows),
        "accuracy": float(right.mean()),
        "interval": wilson(int(right.sum()), len(rows)),
        "routed_accuracy": float(chosen.mean()),
        "per_domain": _by(right, [row.domain for row in rows]),
        "per_language": _by(right, [row.language for row in rows]),
        "per_group": _by(right, [row.group for row in rows]),
        "confusion": confusion,
        "ece": calibration_error(confidence, right),
        "auroc": auroc(confidence, right),
        "coverage": {
            "coverage": float(kept.mean()),
            "accuracy": float(right[kept].mean()) if kept.any() else None,
            "interval": wilson(int(right[kept].sum()), int(kept.sum())),
            "at_85_percent": {
                "accuracy": float(right[confident].mean()),
                "interval": wilson(int(right[confident].sum()), confident.size),
                "threshold": float(confidence[confident].min()),
            },
        },
        "reliability": reliability(confidence, right),
        "latency_ms": {
            "mean": float(took.mean()),
            **{f"p{p}": float(np.percentile(took, p)) for p in (50, 90, 99)},
            "max": float(took.max()),
        },
    }


def _by(right: NDArray[np.bool_], names: Sequence[str]) -> dict[str, Any]:
    """Accuracy by name, the most frequent first."""
    of = {
        name: right[[at for at, other in enumerate(names) if other == name]] for name in dict.fromkeys(names)
    }
    return {
        name: {
            "examples": int(hits.size),
            "accuracy": float(hits.mean()),
            "interval": wilson(int(hits.sum()), int(hits.size)),
        }
        for name, hits in sorted(of.items(), key=lambda item: -item[1].size)
    }


def wilson(hits: int, trials: int) -> list[float] | None:
    """Wilson's 95 % score interval of a share (Wilson 1927); None without trials."""
    if not trials:
        return None
    share = hits / trials
    centre = share + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return [max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)]


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """For each of ten bins of confidence that holds any: mean confidence, share right, how many."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        {
            "confidence": float(confidence[bins == place].mean()),
            "accuracy": float(right[bins == place].mean()),
            "examples": int((bins == place).sum()),
        }
        for place in np.unique(bins)
    ]


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width (Guo et al. 2017)."""
    return sum(
        entry["examples"] / right.size * abs(entry["confidence"] - entry["accuracy"])
        for entry in reliability(confidence, right)
    )


def auroc(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    """The chance that a right answer is surer than a wrong one (ties count half); None if all are alike."""
    sure, unsure = confidence[right], confidence[~right]
    if not sure.size or not unsure.size:
        return None
    ahead = (sure[:, None] > unsure[None, :]).mean() + 0.5 * (sure[:, None] == unsure[None, :]).mean()
    return float(ahead)


def summary(result: dict[str, Any]) -> Iterable[str]:
    """A few lines for a terminal."""
    yield f"accuracy {_share(result)} of {result['examples']} lines"
    for name in ("per_domain", "per_group"):
        for key, entry in result[name].items():
            yield f"  {key}: {_share(entry)} of {entry['examples']}"
    coverage = result["coverage"]
    kept = "none" if coverage["accuracy"] is None else f"{100 * coverage['accuracy']:.1f} %"
    yield f"not abstained: {100 * coverage['coverage']:.1f} %, of these right: {kept}"
    yield f"the surest 85 %: {100 * coverage['at_85_percent']['accuracy']:.1f} % right"
    told = "-" if result["auroc"] is None else f"{result['auroc']:.3f}"
    yield f"calibration error {result['ece']:.3f}, AUROC of confidence {told}"
    took = result["latency_ms"]
    yield f"latency p50 {took['p50']:.2f} ms, p99 {took['p99']:.2f} ms"


def _share(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Reliability diagram and confusion as a picture. Raises RouteEvalError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RouteEvalError("--plot needs matplotlib: pip install 'vllm-axion[bench]'") from None
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    entries = result["reliability"]
    left.plot([0, 1], [0, 1], color="grey", linewidth=1)
    left.plot([e["confidence"] for e in entries], [e["accuracy"] for e in entries], marker="o")
    for entry in entries:
        left.annotate(str(entry["examples"]), (entry["confidence"], entry["accuracy"]), fontsize=8)
    left.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1.02))
    left.set_title(f"calibration error {result['ece']:.3f}")
    names = list(result["confusion"])
    counts = np.array([[result["confusion"][row][column] for column in names] for row in names])
    right.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(counts.shape):
        dark = counts[row, column] > counts[row].sum() / 2
        right.text(column, row, counts[row, column], ha="center", va="center", color="w" if dark else "k")
    right.set_xticks(range(len(names)), names, rotation=30, ha="right")
    right.set_yticks(range(len(names)), names)
    right.set(xlabel="routed to", ylabel="label")
    right.set_title(f"accuracy {100 * result['accuracy']:.1f} % of {result['examples']}")
    figure.savefig(path, dpi=120)
