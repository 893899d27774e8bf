# SPDX-License-Identifier: Apache-2.0
"""What an engine prints becomes log lines of its expert."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_axion.serving.engine_output import EngineOutput

_ENGINE = """
import sys
from vllm_axion.serving.engine_process import redirect_output
redirect_output(sys.argv[1])
print("to stdout"); print("(EngineCore pid=1) ERROR 01-01 broken", file=sys.stderr)
sys.stdout.flush(); sys.stderr.write("no line end"); sys.stderr.flush()
"""


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_every_line_carries_its_expert(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.engine")
    output = EngineOutput(tmp_path, "coder")
    command = [sys.executable, "-c", _ENGINE, str(output.path)]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    await asyncio.sleep(0.1)
    output.close()
    told = {r.getMessage(): (r.levelname, getattr(r, "expert", None)) for r in caplog.records}
    assert told == {
        "coder: to stdout": ("INFO", "coder"),
        "coder: (EngineCore pid=1) ERROR 01-01 broken": ("ERROR", "coder"),
        "coder: no line end": ("INFO", "coder"),
    }


async def test_closing_twice_is_harmless_and_leaves_no_descriptor(tmp_path: Path) -> None:
    before = open_descriptors()
    output = EngineOutput(tmp_path, "coder")
    output.close()
    output.close()
    assert open_descriptors() == before


async def test_an_endless_line_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "vllm_axion.engine")
    output = EngineOutput(tmp_path, "coder")
    pipe = os.open(output.path, os.O_WRONLY)
    os.write(pipe, b"x" * 40_000)
    await asyncio.sleep(0.1)
    os.close(pipe)
    output.close()
    assert caplog.records
    assert sum(r.getMessage().count("x") for r in caplog.records) == 40_000
