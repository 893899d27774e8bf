# SPDX-License-Identifier: Apache-2.0
"""`docs/serving.md` against the server it describes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running_server import RunningServer
from vllm_axion.serving.config import LazyLoadingConfig, LimitsConfig
from vllm_axion.serving.profiles import PROFILES
from vllm_axion.serving.residency import State


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "serving.md").read_text(encoding="utf-8")


def fields(stats: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of everything in `/stats`, one expert standing for all."""
    for name, value in stats.items():
        if prefix == "experts.":
            yield from fields(value, "experts.ID.")
            return
        if isinstance(value, dict):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def documented(page: str) -> set[str]:
    """First cells of the table of `/stats`: `a.b`, `c` is a.b and a.c; `a.b.c`, `.d` is a.b.c and a.b.d."""
    found = set()
    for row in page.split("## `/stats`, field by field", 1)[1].splitlines():
        if not row.startswith("| `"):
            continue
        first, *others = [part.strip(" `") for part in row.split("|")[1].split(",")]
        parent = first.rsplit(".", 1)[0]
        found |= {first, *(f"{parent}.{other.removeprefix('.')}" for other in others)}
    return found


def test_every_field_of_stats_is_explained_and_no_other(page: str, server: RunningServer) -> None:
    assert set(fields(server.get("/stats"))) == documented(page)


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_explained(page: str, state: State) -> None:
    assert f"| `{state.value}` |" in page


@pytest.mark.parametrize("profile", list(PROFILES))
def test_every_profile_is_explained(page: str, profile: str) -> None:
    assert f"| `{profile}` |" in page


def test_every_limit_and_every_setting_of_loading_is_explained(page: str) -> None:
    names = [f"lazy_loading.{name}" for name in LazyLoadingConfig.model_fields]
    names += [f"limits.{name}" for name in LimitsConfig.model_fields]
    assert [name for name in names if f"`{name}" not in page and name not in page] == []
