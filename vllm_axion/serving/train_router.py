# SPDX-License-Identifier: Apache-2.0
"""Train the router's model from the examples in `router_data`: `python -m vllm_axion.serving.train_router`.

Deterministic, numpy only, a minute or two on one core. The examples are parted into folds in which whole
topics (clusters of words) and whole languages stand together. A first stage is trained without each fold;
what it says of that fold, with the signals, is what the second stage learns from: texts as they will come,
on topics and in languages the first stage does not know. The temperature and the figures printed at the end
come from second stages trained without the fold as well. Then a first stage is trained on everything.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vllm_axion.serving.ngram_classifier import Floats, nothing, signals, softmax
from vllm_axion.serving.ngram_features import Ints, pieces
from vllm_axion.serving.router_augment import Example, gibberish, variants
from vllm_axion.serving.router_model import MODEL_FILE, RouterModel
from vllm_axion.serving.router_training import (
    FOLDS,
    TRIPLE_UNIT,
    Rows,
    SecondStage,
    best_temperature,
    folds_of,
    language_table,
    rows_of,
    second_stage_inputs,
    train_first_stage,
    train_second_stage,
)

HERE = Path(__file__).parent
DATA = HERE / "router_data"
DOMAINS = ("general", "technical", "coding", "multimodal_expert", "multilingual_expert")
RESERVED_LANGUAGES = frozenset({"et", "sw", "tl", "is", "ka"})
"""Never trained on: figures for these stand for all the languages that nobody thought of."""
VARIANTS, VARIANT_WEIGHT = 3, 0.4
NETS = 3
NONSENSE = 400
PROTOTYPES = 150  # a domain


class TrainingDataError(ValueError):
    """A line of the examples is not of the right form."""


def read_examples(folder: Path) -> list[Example]:
    """The examples of `<domain>.tsv` in a folder: lines `language<TAB>text`, with `\\n` for a line break and
    `#` before comments.

    Raises TrainingDataError for a line of another form, or in a language that is kept for evaluation."""
    found: list[Example] = []
    for domain in DOMAINS:
        path = folder / f"{domain}.tsv"
        if not path.is_file():
            raise TrainingDataError(f"{path}: no such file; the examples come with the repository")
        seen: set[str] = set()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip() or line.startswith("#"):
                continue
            language, tab, text = line.partition("\t")
            if not tab or not any(map(str.isalpha, text)):
                raise TrainingDataError(f"{path.name}:{number}: not of the form language<TAB>text")
            if language in RESERVED_LANGUAGES:
                raise TrainingDataError(f"{path.name}:{number}: {language} is kept for evaluation")
            text = text.replace("\\n", "\n")
            if text.casefold() not in seen:
                seen.add(text.casefold())
                found.append(Example(domain, language, text))
    return found


def hash_of_data(folder: Path) -> str:
    """SHA-256 over the names and contents of the example files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.tsv")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


# Texts whose features tell one version of the feature code from another.
_PROBES = (
    "¿Cómo se escribe «Hello, World!» en C++? Traduce: Où est la gare?",
    "def f(x_1):\n    return x_1 ** 2  # año 2024",
    "ПРИВЕТ 你好 héllo ñandú --verbose /etc/hosts x=>y",
    "mira la foto adjunta y dime cómo funciona un motor diésel; gracias 🙏",
    "What's the recipe? Tell me a joke about my brother, please, and explain the protocol in this document.",
)


def hash_of_features() -> str:
    """SHA-256 over what the feature code makes of a few texts: a model fits only what it learnt from."""
    digest = hashlib.sha256()
    for text in _PROBES:
        read = pieces(text)
        total = nothing(0)
        total.counts += read.counts
        for part in (read.columns, read.triples, read.counts, signals(total, TRIPLE_UNIT).astype(np.float32)):
            digest.update(part.tobytes())
    return digest.hexdigest()


def _with_variants(examples: Sequence[Example], folds: Ints) -> tuple[Rows, Ints]:
    """All texts to train on, and the fold of each."""
    rng = random.Random(0)
    code = [example for example in examples if example.language == "zxx"]
    alike: dict[tuple[str, str, int], list[Example]] = {}
    for example, fold in zip(examples, folds.tolist(), strict=True):
        alike.setdefault((example.domain, example.language, fold), []).append(example)
    texts: list[Example] = []
    source: list[int] = []
    weights: list[float] = []
    for at, (example, fold) in enumerate(zip(examples, folds.tolist(), strict=True)):
        same = alike[example.domain, example.language, fold]
        more = [v for v in variants(example, VARIANTS, rng, same, code) if any(map(str.isalpha, v.text))]
        texts += [example, *more]
        source += [at] * (1 + len(more))
        weights += [1.0, *(VARIANT_WEIGHT for _ in more)]
    labels = [DOMAINS.index(text.domain) for text in texts]
    of_row = folds[np.array(source)]
    nonsense = [Example("", "zxx", gibberish(rng)) for _ in range(NONSENSE)]
    none = [0] * NONSENSE
    rows = rows_of([*texts, *nonsense], labels + [-1] * NONSENSE, weights + [0.5] * NONSENSE, source + none)
    return rows, np.concatenate((of_row, np.arange(NONSENSE) % FOLDS))


def train(examples: Sequence[Example], *, log: bool = False) -> tuple[RouterModel, Floats, Ints]:
    """The model; and for each example as written the chances it had while its fold was held out, and its
    label."""
    began = time.monotonic()

    def say(line: str) -> None:
        if log:
            print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)

    folds = folds_of(examples)
    rows, fold_of_row = _with_variants(examples, folds)
    say(f"{len(examples)} examples, {rows.labels.size} texts with variants")
    domains = len(DOMAINS)
    blocks: list[tuple[Ints, Floats]] = []
    for fold in range(FOLDS):
        keep = fold_of_row != fold
        held = np.flatnonzero(~keep)
        logits = train_first_stage(rows, keep, domains).logits(rows, held)
        blocks.append((held, second_stage_inputs(rows, held, logits, language_table(rows, examples, keep))))
        say(f"first stage without fold {fold} of {FOLDS}")
    seen = np.empty((rows.labels.size, blocks[0][1].shape[1]))
    for held, inputs in blocks:
        seen[held] = inputs
    centre, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-3
    placed = np.clip((seen - centre) / spread, -4.0, 4.0)
    targets = np.full((rows.labels.size, domains), 1.0 / domains)
    labelled = rows.labels >= 0
    targets[labelled] = np.eye(domains)[rows.labels[labelled]]

    def nets(keep: np.ndarray[tuple[int], np.dtype[np.bool_]], count: int) -> list[SecondStage]:
        return [
            train_second_stage(placed[keep], targets[keep], rows.weights[keep], seed=seed)
            for seed in range(count)
        ]

    held_out = np.empty((rows.labels.size, domains))
    for fold in range(FOLDS):
        held_rows = fold_of_row == fold
        held_out[held_rows] = np.mean([net.logits(placed[held_rows]) for net in nets(~held_rows, 2)], axis=0)
    written = rows.originals & labelled
    temperature = best_temperature(held_out[written], rows.labels[written])
    say("second stages without each fold")
    final = nets(np.ones(rows.labels.size, np.bool_), NETS)
    everything = np.ones(rows.labels.size, np.bool_)
    first = train_first_stage(rows, everything, domains)
    say("both stages on everything")
    weight_unit = max(float(np.abs(first.weights).max()), 1e-9) / 32_000
    square_unit = float(first.squares.max()) / 32_000
    whole = np.concatenate((first.weights / weight_unit, first.squares[:, None] / square_unit), axis=1)
    model = RouterModel(
        domains=DOMAINS,
        weights=np.round(whole).astype(np.int16),
        weight_unit=weight_unit,
        square_unit=square_unit,
        bias=first.bias,
        triples=language_table(rows, examples, everything),
        triple_unit=TRIPLE_UNIT,
        centre=centre,
        spread=spread,
        into_hidden=np.array([net.into_hidden for net in final]),
        hidden_bias=np.array([net.hidden_bias for net in final]),
        out_of_hidden=np.array([net.out_of_hidden for net in final]),
        out_bias=np.array([net.out_bias for net in final]),
        temperature=temperature,
        prototypes=_prototypes(examples),
        data_hash="",
        features_hash=hash_of_features(),
    )
    return model, softmax(held_out[written] / temperature), rows.labels[written]


def _prototypes(examples: Sequence[Example]) -> dict[str, list[str]]:
    rng = random.Random(0)
    chosen = {}
    for domain in DOMAINS:
        short = [e.text for e in examples if e.domain == domain and len(e.text) <= 160]
        chosen[domain] = rng.sample(short, min(PROTOTYPES, len(short)))
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """Console entry: exit status 0, or 2 with one line when the examples are at fault."""
    parser = argparse.ArgumentParser(prog="python -m vllm_axion.serving.train_router", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of <domain>.tsv files")
    parser.add_argument("--out", type=Path, default=HERE / MODEL_FILE, help="file to write")
    options = parser.parse_args(arguments)
    try:
        examples = read_examples(options.data)
    except (TrainingDataError, OSError, UnicodeDecodeError) as fault:
        print(f"train_router: error: {fault}", file=sys.stderr)
        return 2
    model, chances, labels = train(examples, log=True)
    replace(model, data_hash=hash_of_data(options.data)).save(options.out)
    right = chances.argmax(axis=1) == labels
    print(f"topics and languages held out: {100 * right.mean():.1f} % of {labels.size} examples")
    for place, domain in enumerate(DOMAINS):
        print(f"  {domain}: {100 * right[labels == place].mean():.1f} %")
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
