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
    when: Literal["set-up", "run time"] = "run time"

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
    "Folder for what set-up and tests build once: demo models, vLLM source builds.",
    "set-up",
)

VARIABLES: tuple[Variable, ...] = (TORCH_INDEX, CACHE)


def torch_index() -> str | None:
    """URL of the extra package index, or None."""
    return TORCH_INDEX.raw()


def cache_directory() -> Path:
    """The cache folder, absolute; it may not exist yet."""
    return Path(CACHE.raw() or CACHE.default).expanduser().absolute()
