# SPDX-License-Identifier: Apache-2.0
"""
Print what an installed vLLM build asks for, without torch and its companions, as a pip requirements file.

A CPU build of vLLM names exact builds of torch, torchvision and others that the user's package index may not
have, or has only for CUDA. They are installed apart (tools/setup.sh), the rest from here.
"""

import sys
from collections.abc import Iterable
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

INSTALLED_APART = frozenset({"torch", "torchaudio", "torchcodec", "torchvision"})


def without_torch(asked: Iterable[str]) -> list[str]:
    """Lines for pip: requirements whose marker holds on this machine, less extras and the torch family."""
    kept = []
    for line in asked:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) in INSTALLED_APART:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        requirement.marker = None
        kept.append(str(requirement))
    return sorted(set(kept))


if __name__ == "__main__":
    print("\n".join(without_torch(requires(sys.argv[1]) or [])))
