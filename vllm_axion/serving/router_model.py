# SPDX-License-Identifier: Apache-2.0
"""The router's trained numbers: one safetensors file and its meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FORMAT = "vllm-axion router 1"
MODEL_FILE = "router_model.safetensors"

Floats = NDArray[np.float64]


class RouterModelError(ValueError):
    """The file is no router model, or one of another version."""


@dataclass(frozen=True)
class RouterModel:
    """What `train_router` learnt.

    `weights` [columns, domains + 1] hold each n-gram's logits and, last, its squared length, in whole units;
    `triples` [buckets, 3] log chances of 3-grams in Spanish, English and other languages. The second stage is
    the mean of several small networks: [nets, inputs, hidden], [nets, hidden], [nets, hidden, domains], …
    `temperature` divides its logits. `prototypes` are examples of each domain, to compare with. The hashes
    are of the examples it was trained on and of the features they had."""

    domains: tuple[str, ...]
    weights: NDArray[np.int16]
    weight_unit: float
    square_unit: float
    bias: Floats
    triples: NDArray[np.int16]
    triple_unit: float
    centre: Floats
    spread: Floats
    into_hidden: Floats
    hidden_bias: Floats
    out_of_hidden: Floats
    out_bias: Floats
    temperature: float
    prototypes: Mapping[str, Sequence[str]]
    data_hash: str
    features_hash: str

    def second_stage(self, seen: Floats) -> Floats:
        """Calibrated logits [domains] from the first stage's logits and the signals [inputs]."""
        into, hidden_bias, out_of, out_bias = self._as_one_net
        placed = np.clip((seen - self.centre) / self.spread, -4.0, 4.0)
        hidden = np.tanh((placed[:, None] * into).sum(axis=0) + hidden_bias)
        return np.asarray(((hidden[:, None] * out_of).sum(axis=0) + out_bias) / self.temperature)

    @cached_property
    def _as_one_net(self) -> tuple[Floats, Floats, Floats, Floats]:
        """The nets side by side: the mean of their logits is one layer over all their hidden units."""
        nets, inputs, _ = self.into_hidden.shape
        return (
            np.ascontiguousarray(self.into_hidden.transpose(1, 0, 2).reshape(inputs, -1)),
            self.hidden_bias.reshape(-1),
            self.out_of_hidden.reshape(-1, self.out_bias.shape[1]) / nets,
            self.out_bias.mean(axis=0),
        )

    def save(self, path: Path) -> None:
        """Write the file. The same numbers give the same bytes."""
        tensors = {
            name: np.ascontiguousarray(getattr(self, name), None if name in _WHOLE else np.float32)
            for name in _TENSORS
        }
        facts = {
            "format": FORMAT,
            "domains": list(self.domains),
            **{name: getattr(self, name) for name in _NUMBERS},
            "prototypes": {domain: list(texts) for domain, texts in self.prototypes.items()},
            "data_hash": self.data_hash,
            "features_hash": self.features_hash,
        }
        save_file(tensors, path, metadata={"router": json.dumps(facts, ensure_ascii=False, sort_keys=True)})
        path.chmod(0o644)

    @classmethod
    def load(cls, path: Path) -> RouterModel:
        """Raises RouterModelError for a file that is none of ours, OSError for one that cannot be read."""
        try:
            with safe_open(path, framework="numpy") as opened:
                facts = json.loads((opened.metadata() or {}).get("router", "{}"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError) as fault:
            raise RouterModelError(f"{path}: not a router model ({fault})") from None
        if facts.get("format") != FORMAT or set(tensors) != set(_TENSORS):
            raise RouterModelError(
                f"{path}: not a router model of this version ({FORMAT}); write one with "
                "python -m vllm_axion.serving.train_router"
            )
        numbers = {name: float(facts[name]) for name in _NUMBERS}
        arrays: dict[str, Any] = {
            name: tensor if name in _WHOLE else tensor.astype(np.float64) for name, tensor in tensors.items()
        }
        return cls(
            domains=tuple(facts["domains"]),
            prototypes=facts["prototypes"],
            data_hash=facts["data_hash"],
            features_hash=facts["features_hash"],
            weight_unit=numbers["weight_unit"],
            square_unit=numbers["square_unit"],
            triple_unit=numbers["triple_unit"],
            temperature=numbers["temperature"],
            **arrays,
        )


_WHOLE = ("weights", "triples")
_TENSORS = (
    *_WHOLE,
    *("bias", "centre", "spread", "into_hidden", "hidden_bias", "out_of_hidden", "out_bias"),
)
_NUMBERS = ("weight_unit", "square_unit", "triple_unit", "temperature")


@lru_cache(maxsize=1)
def shipped_model() -> RouterModel:
    """The model that ships with the package."""
    with as_file(files("vllm_axion.serving").joinpath(MODEL_FILE)) as path:
        return RouterModel.load(path)
