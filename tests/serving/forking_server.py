# SPDX-License-Identifier: Apache-2.0
"""A server with one forked child that waits, as a program: prints the pids of the child and of its parent.

With the word `template` the child comes from the engine template and does nothing for its own end.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from multiprocessing.connection import Connection

import psutil

from vllm_axion.serving.engine_process import prepare_engine_process, start_fork_server


def engine(ready: Connection, prepare: bool) -> None:
    """What an engine does first; then it waits for its end."""
    if prepare:
        prepare_engine_process({})
    ready.send(psutil.Process().ppid())
    time.sleep(60)


if __name__ == "__main__":
    template = sys.argv[1:] == ["template"]
    if template:
        start_fork_server([])
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    child = context.Process(target=engine, args=(there, not template))
    child.start()
    print(child.pid, here.recv(), flush=True)
    time.sleep(60)
