# SPDX-License-Identifier: Apache-2.0
"""Log lines: where they go and what they look like."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_axion.serving.logs import JsonFormatter

_SERVER = """
import argparse, logging, os, sys, time
from vllm_axion.serving import logs
from vllm_axion.serving.log_stream import LogStreams
logs.LOG_FILE_BYTES = int(sys.argv[2])
logs.set_up_logging(argparse.Namespace(), LogStreams(["coder"]), log_format=sys.argv[3], log_file=sys.argv[1])
logging.getLogger("vllm_axion.experts").info("coder: loaded")
print("printed by a library", flush=True)
os.system("echo printed by a child")
for number in range(int(sys.argv[4])):
    logging.getLogger("vllm_axion.experts").info("line %d", number)
time.sleep(0.5)
os._exit(0)
"""


def run_server(log: Path, rotate_at: int = 10**6, log_format: str = "text", lines: int = 0) -> None:
    command = [sys.executable, "-c", _SERVER, str(log), str(rotate_at), log_format, str(lines)]
    subprocess.run(command, check=True, timeout=60)


def test_everything_the_server_and_its_children_print_is_in_the_log_file(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("before\n")
    run_server(log)
    text = log.read_text()
    assert text.startswith("before\n")
    for told in ("coder: loaded", "printed by a library", "printed by a child"):
        assert told in text


def test_a_full_log_file_is_rotated_and_no_line_is_lost(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    run_server(log, rotate_at=4000, lines=300)
    files = sorted(tmp_path.glob("server.log*"))
    assert len(files) > 1
    assert log.stat().st_size <= 4100
    told = "".join(file.read_text() for file in files)
    assert all(f"line {number}\n" in told for number in range(300))


def test_json_lines_can_be_read_by_a_machine(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    run_server(log, log_format="json")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"coder: loaded", "printed by a library"} <= {line["message"] for line in lines}
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)


def test_an_exception_is_one_json_line() -> None:
    try:
        raise ValueError("in the\nmiddle")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert "ValueError" in json.loads(line)["exception"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_break_sent_by_a_client_starts_no_line_of_its_own(log_format: str, tmp_path: Path) -> None:
    # What clients send reaches log lines only through the request log, which escapes it; see its tests.
    log = tmp_path / "server.log"
    run_server(log, log_format=log_format, lines=1)
    assert all(line.strip() for line in log.read_text().splitlines())
