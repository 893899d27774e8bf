# SPDX-License-Identifier: Apache-2.0
"""Makes a load of a running server slow for real: its engine process is stopped as soon as it appears."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from tests.serving.running_server import RunningServer

_APPEARS_WITHIN_S = 30.0


class StalledLoad:
    """The engine process of a load that stands still; `pid` is 0 until it has appeared."""

    def __init__(self, server: RunningServer) -> None:
        self._before = set(engine_pids(server))
        self._server = server
        self.pid = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._hunt)
        self._thread.start()

    def _hunt(self) -> None:
        while not self._ended.is_set():
            for pid in engine_pids(self._server):
                if pid not in self._before:
                    os.kill(pid, signal.SIGSTOP)
                    self.pid = pid
                    return
            time.sleep(0.002)

    def wait(self) -> int:
        """The stopped process's id, once there is one."""
        self._thread.join(_APPEARS_WITHIN_S)
        assert self.pid, f"no engine appeared\n{self._server.tail()}"
        return self.pid

    def go_on(self) -> None:
        """Let the load continue."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End the engine process."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.wait(), number)

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        if self.pid:
            self.go_on()


@contextlib.contextmanager
def stalled_load(server: RunningServer) -> Iterator[StalledLoad]:
    """The next engine that starts stands still until `go_on`, `kill` or the end of this context."""
    stalled = StalledLoad(server)
    try:
        yield stalled
    finally:
        stalled.end()


def engine_pids(server: RunningServer) -> list[int]:
    """Engine processes: children of the server's fork server."""
    found: list[int] = []
    with contextlib.suppress(psutil.Error):  # a process may end while it is looked at
        for process in psutil.Process(server.pid).children():
            if "multiprocessing.forkserver" in " ".join(process.cmdline()):
                found += [child.pid for child in process.children()]
    return found


def later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    """Do something after some time, in a thread of its own; started already."""
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer
