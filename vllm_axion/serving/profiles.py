# SPDX-License-Identifier: Apache-2.0
"""What the server may do ahead of being asked: three profiles, from nothing to everything that exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

ProfileName = Literal["stable", "default", "optimized"]


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile.

    ``prefix_caching`` is vLLM's option for experts that do not set it themselves; ``None`` leaves vLLM's
    default.
    """

    warm_pool: bool
    prefetch: bool
    prefix_caching: bool | None


PROFILES: Mapping[ProfileName, Profile] = MappingProxyType(
    {
        "stable": Profile(warm_pool=False, prefetch=False, prefix_caching=None),
        "default": Profile(warm_pool=True, prefetch=False, prefix_caching=None),
        "optimized": Profile(warm_pool=True, prefetch=True, prefix_caching=True),
    }
)
