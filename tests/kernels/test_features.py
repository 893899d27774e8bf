# SPDX-License-Identifier: Apache-2.0
"""vllm_axion.kernels.features and the extension behind it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_axion import _kernels
from vllm_axion.kernels import CpuFeatures, detect

ARM = {"neon", "fp16", "dotprod", "bf16", "i8mm", "sve", "sve2"}
X86 = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}

# AT_HWCAP and AT_HWCAP2 as Linux numbers their bits.
ASIMD, FPHP, ASIMDHP, ASIMDDP, SVE = 1 << 1, 1 << 9, 1 << 10, 1 << 20, 1 << 22
SVE2, I8MM, BF16 = 1 << 1, 1 << 13, 1 << 14


def test_machine_is_the_one_python_runs_on() -> None:
    machine = platform.machine()
    assert detect().machine == (machine if machine in ("aarch64", "x86_64") else "")


def test_features_belong_to_the_machine() -> None:
    allowed = {"aarch64": ARM, "x86_64": X86}.get(platform.machine(), set())
    assert detect().names <= allowed


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="the kernel's own list of features is not there"
)
def test_features_agree_with_the_kernels_own_list() -> None:
    words = set(Path("/proc/cpuinfo").read_text().split())
    spelled = {
        "aarch64": {
            "neon": "asimd",
            "dotprod": "asimddp",
            "bf16": "bf16",
            "i8mm": "i8mm",
            "sve": "sve",
            "sve2": "sve2",
        },
        "x86_64": {name: name for name in X86},
    }.get(platform.machine(), {})
    assert {name for name in spelled if name in detect().names} == {
        n for n, word in spelled.items() if word in words
    }


def test_sve_length_is_given_exactly_with_sve() -> None:
    found = detect()
    assert (found.sve_bits >= 128 and found.sve_bits % 128 == 0) == ("sve" in found.names)


def test_asking_twice_gives_the_same_answer() -> None:
    assert detect() is detect()
    assert isinstance(detect(), CpuFeatures)


@pytest.mark.parametrize(
    ("core", "hwcap", "hwcap2", "expected"),
    [
        ("none", 0, 0, []),
        ("Cortex-A72", ASIMD, 0, ["neon"]),
        ("Neoverse N1", ASIMD | FPHP | ASIMDHP | ASIMDDP, 0, ["neon", "fp16", "dotprod"]),
        (
            "Neoverse V1",
            ASIMD | FPHP | ASIMDHP | ASIMDDP | SVE,
            I8MM | BF16,
            ["neon", "fp16", "dotprod", "bf16", "i8mm", "sve"],
        ),
        (
            "Neoverse V2",
            ASIMD | FPHP | ASIMDHP | ASIMDDP | SVE,
            SVE2 | I8MM | BF16,
            ["neon", "fp16", "dotprod", "bf16", "i8mm", "sve", "sve2"],
        ),
        ("scalar half precision only", ASIMD | FPHP, 0, ["neon"]),
    ],
)
def test_arm_capability_words_decode(core: str, hwcap: int, hwcap2: int, expected: list[str]) -> None:
    assert _kernels.decode_arm_hwcaps(hwcap, hwcap2) == expected, core


@pytest.mark.parametrize(
    ("implementer", "part", "name"),
    [
        ("0x41", "0xd0c", "Neoverse N1"),
        ("0x41", "0xd40", "Neoverse V1"),
        ("0x41", "0xd49", "Neoverse N2"),
        ("0x41", "0xd4f", "Neoverse V2"),
        ("0x6d", "0xd49", "Neoverse N2"),
        ("0x41", "0xfff", ""),
        ("0x00", "0xd4f", ""),
    ],
)
def test_core_is_named_from_cpuinfo(implementer: str, part: str, name: str) -> None:
    text = (
        "processor\t: 0\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd\n"
        f"CPU implementer\t: {implementer}\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        f"CPU part\t: {part}\nCPU revision\t: 1\n\n"
        "processor\t: 1\nCPU implementer\t: 0x41\nCPU part\t: 0xd03\n"
    )
    midr = _kernels.midr_from_cpuinfo(text)
    assert midr is not None
    assert _kernels.core_name(midr) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "model name\t: Some x86 CPU\nflags\t: avx2\n",
        "CPU implementer\t: 0x41\n",
        "CPU part\t: 0xd4f\n",
        "CPU implementer\t: \nCPU part\t: 0xd4f",
        "CPU implementer\t: 0xzz\nCPU part\t: 0xd4f",
        "CPU implementer\t: 0x41ffffffffffffffffff\nCPU part\t: 0xd4f",
    ],
)
def test_cpuinfo_without_a_core_gives_none(text: str) -> None:
    assert _kernels.midr_from_cpuinfo(text) is None


def test_revision_and_variant_do_not_hide_the_core() -> None:
    assert _kernels.core_name(0x413FD0C1) == "Neoverse N1"


def test_without_the_extension_detect_says_what_to_do() -> None:
    code = """
import sys
sys.modules["vllm_axion._kernels"] = None
from vllm_axion.kernels import detect
try:
    detect()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vllm_axion._kernels does not load" in done.stdout
    assert "make setup" in done.stdout
