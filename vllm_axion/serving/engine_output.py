# SPDX-License-Identifier: Apache-2.0
"""What an engine's process prints, line by line, as log lines of its expert."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

logger = logging.getLogger("vllm_axion.engine")

OUTPUT_PIPE = "output"
"""Name of the pipe in the folder of a load."""

_LONGEST_LINE = 16 * 1024


class EngineOutput:
    """Reads the named pipe an engine writes its output to. Belongs to the running event loop.

    Args:
        folder: the private folder of one load; the pipe is made in it.
    """

    def __init__(self, folder: Path, expert_id: str) -> None:
        self.path = folder / OUTPUT_PIPE
        self._expert_id = expert_id
        self._rest = b""
        os.mkfifo(self.path, 0o600)
        # Opened for writing too, so that it does not end before the engine has begun to write.
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._read)

    def close(self) -> None:
        """Take what is left and stop reading. Harmless twice."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._read()
        if self._rest:
            self._log(self._rest)
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> None:
        try:
            data = self._rest + os.read(self._fd, 65536)
        except BlockingIOError:
            return
        *lines, self._rest = data.split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._log(line)

    def _log(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            level = logging.ERROR if " ERROR " in text[:60] else logging.INFO
            logger.log(level, "%s: %s", self._expert_id, text, extra={"expert": self._expert_id})
