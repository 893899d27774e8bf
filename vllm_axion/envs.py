# SPDX-License-Identifier: Apache-2.0
"""Every environment variable of this project: name, type, default and meaning, in one list.

Read one through its typed function below; `docs/environment.md` and a test keep list, code and docs together.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Variable:
    """One environment variable. `default` is what the docs print when it is unset."""

    name: str
    kind: Literal["text", "path", "url"]
    default: str
    meaning: str
    used: Literal["set-up", "set-up, run time", "run time", "internal"] = "run time"

    def raw(self) -> str | None:
        """Its value, or None when unset or empty."""
        return os.environ.get(self.name) or None


TORCH_INDEX = Variable(
    "VLLM_AXION_TORCH_INDEX",
    "url",
    "none",
    "Extra package index to look for the CPU build of torch in, besides the configured ones.",
    "set-up",
)
CACHE = Variable(
    "VLLM_AXION_CACHE",
    "path",
    "~/.cache/vllm-axion",
    "Folder for what is made once and kept outside the clone: demo models, vLLM built from source, and the "
    "router's cache where `router.embedding_cache.persist` is set.",
    "set-up, run time",
)
ENGINE_ARCHITECTURES = Variable(
    "VLLM_AXION_ENGINE_ARCHITECTURES",
    "text",
    "none",
    "Set by the server for its engine processes: model architectures to import ahead. Not for users.",
    "internal",
)

VARIABLES: tuple[Variable, ...] = (TORCH_INDEX, CACHE, ENGINE_ARCHITECTURES)


def cache_directory() -> Path:
    """The cache folder, absolute; it may not exist yet."""
    return Path(CACHE.raw() or CACHE.default).expanduser().absolute()
