# SPDX-License-Identifier: Apache-2.0
"""Typed Python face of the compiled kernels. Importing never fails; using what is not built does, clearly."""

from vllm_axion.kernels.features import CpuFeatures, detect

__all__ = ["CpuFeatures", "detect"]
