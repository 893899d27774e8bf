# SPDX-License-Identifier: Apache-2.0
"""What every engine is forked from: no engine survives its server, whatever it was doing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_process_forked_from_the_template_ends_with_its_server_even_before_it_is_an_engine() -> None:
    program = Path(__file__).with_name("forking_server.py")
    server = subprocess.Popen(
        [sys.executable, str(program), "template"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert server.stdout is not None
    child, template = map(int, server.stdout.readline().split())
    try:
        # Ctrl-C in a terminal reaches the server's group only: engines finish what they have.
        assert os.getpgid(template) == template and os.getpgid(child) == template
        assert psutil.Process(template).environ()["OMP_WAIT_POLICY"] == "PASSIVE"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    deadline = time.monotonic() + 5
    while alive(child) or alive(template):
        assert time.monotonic() < deadline, "an engine outlived its server"
        time.sleep(0.05)
