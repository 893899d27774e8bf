# SPDX-License-Identifier: Apache-2.0
"""Fixtures for every test."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

import vllm_axion
from vllm_axion import envs


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the clone under test."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def demo_models() -> Path:
    """
    Folder with the five demo experts and `config.demo.json`, for reading only.

    Kept outside the clone under a hash of what makes them, so that only a change there makes them again.
    """
    from vllm_axion.demo_models import make_demo_models

    package = Path(vllm_axion.__file__).parent
    made_by = hashlib.sha256(f"{version('torch')} {version('transformers')}".encode())
    for source in [*sorted(package.glob("demo_*.py")), package / "configs" / "config.demo.json"]:
        made_by.update(source.read_bytes())
    directory = envs.cache_directory() / f"demo-models-{made_by.hexdigest()[:16]}"
    make_demo_models(directory)
    return directory


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns a TCP port of 127.0.0.1 nobody listens on, another one at each call."""
    handed_out: set[int] = set()

    def pick() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in handed_out:
                handed_out.add(port)
                return port

    return pick
