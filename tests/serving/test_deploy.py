# SPDX-License-Identifier: Apache-2.0
"""The files in `entrypoints/deploy`, as far as they can be judged without the machines they are for."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_axion.serving.command_line import make_parser
from vllm_axion.serving.config import LazyLoadingConfig

MOST_EXPOSED = 4.0
"""systemd's own measure of a unit, 0 (shut in) to 10 (may do anything); below 5 it says OK."""


@pytest.fixture(scope="module")
def unit(repository: Path) -> Path:
    return repository / "entrypoints" / "deploy" / "systemd" / "vllm-axion.service"


def settings(unit: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment]
    parser.read_string(unit.read_text("utf-8"))
    return parser["Service"]


@pytest.fixture
def analyze() -> str:
    command = shutil.which("systemd-analyze")
    if command is None:
        pytest.skip("systemd-analyze is not installed")
    return command


def test_systemd_finds_no_fault_in_the_unit(unit: Path, analyze: str, tmp_path: Path) -> None:
    here = tmp_path / unit.name
    command = settings(unit)["ExecStart"].split()[0]
    installed = str(Path(sys.executable).parent / "vllm-axion")
    here.write_text(unit.read_text("utf-8").replace(command, installed))
    done = subprocess.run([analyze, "verify", "--man=no", here], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_is_shut_in(unit: Path, analyze: str) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=true", unit], capture_output=True, text=True, check=False
    )
    level = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= MOST_EXPOSED


def test_the_command_of_the_unit_is_one_the_server_takes(unit: Path) -> None:
    program, serve, config, *flags = settings(unit)["ExecStart"].split()
    assert program.endswith("/.venv/bin/vllm-axion") and serve == "serve"
    parsed = make_parser("vllm-axion serve").parse_args([config, *flags])
    assert parsed.model_tag == config
    assert parsed.log_format == "json"


def test_systemd_waits_longer_than_the_server_drains(unit: Path) -> None:
    drains = LazyLoadingConfig().drain_timeout_s
    assert float(settings(unit)["TimeoutStopSec"]) >= drains + 15
    assert settings(unit)["KillMode"] == "mixed", "engines must not get the server's SIGTERM"
    assert settings(unit)["OOMPolicy"] == "continue", "one engine that dies is not the end of the others"
