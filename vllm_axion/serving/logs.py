# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: the terminal or a rotating file, as text or JSON, and the per-expert streams.

What libraries print past Python's logging (a traceback of an engine, a C++ warning) goes the same way: with
a log file the process writes its own output into a pipe it reads itself, so that one writer owns the file
and may rotate it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import threading
from logging.handlers import RotatingFileHandler

from vllm_axion.serving.log_stream import LogStreams, as_fields

LOG_FILE_BYTES = 50 * 1024 * 1024
"""Size at which a log file is rotated; five old ones are kept."""

_OLD_FILES = 5
_OURS = ("vllm_axion", "uvicorn")


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the same keys as the log streams."""

    def format(self, record: logging.LogRecord) -> str:
        fields = as_fields(record)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """``12:34:56 INFO qwen_coder: loaded in 0.72 s``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")


def set_up_logging(
    args: argparse.Namespace,
    streams: LogStreams,
    *,
    log_format: str = "text",
    log_file: str | None = None,
) -> None:
    """Send our log lines, uvicorn's and vLLM's to one place.

    Args:
        args: namespace of vLLM's serve parser; its logging options are made quiet unless the user set them.
        streams: gets every line of ours as well.
        log_format: ``text`` or ``json``.
        log_file: appended to and rotated instead of printing. Raises OSError if it cannot be written.
    """
    formatter = JsonFormatter() if log_format == "json" else TextFormatter()
    output: logging.Handler
    if log_file is None:
        output = logging.StreamHandler()
    else:
        output = RotatingFileHandler(
            log_file, maxBytes=LOG_FILE_BYTES, backupCount=_OLD_FILES, encoding="utf-8"
        )
    output.setFormatter(formatter)
    for name in _OURS:
        named = logging.getLogger(name)
        named.handlers[:] = [output, streams]
        named.propagate = False
    logging.getLogger("vllm_axion").setLevel(logging.INFO)
    if log_file is not None:
        capture_output(logging.getLogger("vllm_axion.output"))
    quieten_vllm(args)


def quieten_vllm(args: argparse.Namespace) -> None:
    """Show vLLM's errors only, unless the user asked otherwise: one line a load is ours, it writes about
    forty.
    """
    if "VLLM_LOGGING_LEVEL" in os.environ or hasattr(args, "log_level"):
        return
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    logging.getLogger("vllm").setLevel(logging.ERROR)
    if getattr(args, "logging_config", None) is not None:
        args.logging_config = dataclasses.replace(args.logging_config, log_level="ERROR")
    args.use_tqdm_on_load = False


def capture_output(logger: logging.Logger) -> None:
    """Turn everything this process and its children print into log lines."""
    reading, writing = os.pipe()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(writing, stream.fileno())
    os.close(writing)
    thread = threading.Thread(target=_copy_lines, args=(reading, logger), name="log-output", daemon=True)
    thread.start()


def _copy_lines(reading: int, logger: logging.Logger) -> None:
    with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if text := line.rstrip():
                logger.info("%s", text)
