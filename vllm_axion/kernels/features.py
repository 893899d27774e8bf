# SPDX-License-Identifier: Apache-2.0
"""What this machine's CPU can do, as the compiled kernels see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class CpuFeatures:
    """
    Features of the CPU that the operating system lets a program use.

    `machine` is "aarch64", "x86_64" or "" (unknown); `core` a name such as "Neoverse V2", "" when not known;
    `sve_bits` the SVE vector length, 0 without SVE. Ask for one feature with `"bf16" in detect().names`:
    neon, fp16, dotprod, bf16, i8mm, sve, sve2 on aarch64; avx2, avx512f, avx512_bf16, amx_bf16 on x86-64.
    """

    machine: str
    core: str
    names: frozenset[str]
    sve_bits: int


@cache
def detect() -> CpuFeatures:
    """
    Features of this machine, asked once per process.

    Raises ImportError when the extension `vllm_axion._kernels` is not built or does not load.
    """
    try:
        from vllm_axion import _kernels
    except ImportError as error:
        raise ImportError(
            f"vllm_axion._kernels does not load ({error}); build it with `make setup` in a clone, "
            "or install the wheel of this machine and Python version"
        ) from error
    machine, core, names, sve_bits = _kernels.cpu_features()
    return CpuFeatures(machine, core, frozenset(names), sve_bits)
