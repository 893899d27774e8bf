# SPDX-License-Identifier: Apache-2.0
"""A short soak: swaps under traffic leave nothing behind. `bench/soak.py --minutes 30` is the long one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.server_process import write_config
from bench.soak import AtRest, growth, soak, soak_models

EXPERTS = ("qwen_coder", "gemma3_multimodal")
SWAPS = 3
GENEROUS_MB = 60.0
"""What memory may differ by between two looks; tokenizers that stayed would be 50 MB per round."""


def test_swaps_under_traffic_leave_nothing_behind(tmp_path: Path) -> None:
    config = write_config(soak_models(), tmp_path, max_loaded_experts=1, min_residency_s=0)
    result = soak(config, experts=EXPERTS, swaps=SWAPS, quiet=True)
    grown: dict[str, Any] = result["growth"]
    left = {
        name: grown[name] for name in ("descriptors", "template_descriptors", "processes", "shared_memory")
    }
    assert all(count <= 0 for count in left.values()), result["samples"]
    assert grown["run_files"] <= 0, result["samples"]
    assert grown["memory_mb_first_to_last"] < GENEROUS_MB, result["samples"]
    assert result["errors"] == []
    requests = result["requests"]
    assert requests["swap 200"] == len(EXPERTS) * len(result["samples"]), requests
    assert requests["left a stream"] and requests["left early"] and requests["scrape"], requests


def _sample(round_number: int, anonymous: int, **counts: int) -> AtRest:
    zero = dict.fromkeys(AtRest.__dataclass_fields__, 0)
    return AtRest(**{**zero, "round": round_number, "api_anonymous": anonymous, **counts})


def test_growth_is_per_expert_and_twenty_swaps() -> None:
    samples = [_sample(n, 100_000_000 + n * 5_000_000) for n in range(12)]
    assert growth(samples, experts=5)["memory_mb_per_expert_20_swaps"] == 20.0


def test_what_fills_once_and_one_odd_sample_are_not_growth() -> None:
    sizes = [50, 90, *[100] * 4, 130, *[100] * 5]
    samples = [_sample(n, size * 1_000_000) for n, size in enumerate(sizes)]
    assert growth(samples, experts=5)["memory_mb_per_expert_20_swaps"] == 0.0


@pytest.mark.parametrize("name", ["descriptors", "processes", "shared_memory", "threads", "run_files"])
def test_a_count_that_climbs_is_growth(name: str) -> None:
    samples = [_sample(n, 1, **{name: 10 + n}) for n in range(8)]
    assert growth(samples, experts=5)[name] == 3
