# SPDX-License-Identifier: Apache-2.0
"""The process an expert's engine lives in: how it is made, and how it behaves.

Every engine is forked from one *fork server* that has imported vLLM and the architectures of the configured
experts once (`engine_template.py`). A load then costs no imports, and all engines share those pages. The
fork server starts with its own environment (OpenMP runtime, waiting policy), which its children inherit;
what differs between experts travels in vLLM's ``additional_config`` under the key ``vllm_axion``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

ADDITIONAL_CONFIG_KEY = "vllm_axion"
"""Key of vLLM's ``additional_config`` that carries an expert's settings to its engine process."""

ARCHITECTURES_VARIABLE = "VLLM_AXION_ENGINE_ARCHITECTURES"
"""Set by the server for its fork server only: comma-separated model architectures to import ahead."""

_imported_ahead: tuple[str, ...] = ()

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def engine_environment(architectures: Iterable[str]) -> dict[str, str]:
    """Environment of the fork server, and so of every engine, on top of the server's own.

    * One OpenMP runtime, torch's: a second one in the process makes every parallel region many times slower.
    * Threads sleep between parallel regions: an idle engine that spins takes the cores from the busy ones.
    """
    environment = {
        "OMP_WAIT_POLICY": "PASSIVE",
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),
        ARCHITECTURES_VARIABLE: ",".join(architectures),
    }
    preload = [p for p in os.environ.get("LD_PRELOAD", "").split(":") if p]
    names = [Path(p).name for p in preload]
    for package, patterns in (
        ("torch", ("lib/libgomp*.so*", "../torch.libs/libgomp*.so*")),
        ("vllm", ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")),
    ):
        library = _first_library(package, patterns)
        stem = "" if library is None else library.name.split(".so")[0].split("-")[0]
        has_openmp = package == "torch" and any(n.startswith(("libgomp", "libiomp", "libomp")) for n in names)
        if library is not None and not has_openmp and not any(n.startswith(stem) for n in names):
            preload.append(str(library.resolve()))
    if preload:
        environment["LD_PRELOAD"] = ":".join(preload)
    return environment


def _first_library(package: str, patterns: Iterable[str]) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for pattern in patterns:
            for found in sorted(Path(folder).glob(pattern)):
                return found
    return None


def start_fork_server(architectures: Iterable[str]) -> None:
    """Start the fork server; returns at once, while it imports vLLM. Harmless when it runs already.

    Must be called before anything else uses multiprocessing's fork server in this process.
    """
    global _imported_ahead
    _imported_ahead = tuple(architectures)
    multiprocessing.set_forkserver_preload(["vllm_axion.serving.engine_template"])
    with _environment(engine_environment(_imported_ahead)):
        forkserver.ensure_running()


def revive_fork_server() -> None:
    """Start the fork server as before, if it has ended since (killed by hand, or for want of memory).

    Left alone, multiprocessing would do so at the next load, but without the environment engines need.
    """
    start_fork_server(_imported_ahead)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends: vLLM's engine does not notice a dead parent.

    The parent is the fork server, which itself ends when the server does, even by ``kill -9``.
    """
    parent = os.getppid()
    be_killed_with_parent()
    if os.getppid() != parent or parent == 1:  # it died just before the call
        os._exit(1)
    _let_go_of_fork_server()


def be_killed_with_parent() -> None:
    """From now on the kernel kills this process when its parent ends; nothing happens where there is no such
    service.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _let_go_of_fork_server() -> None:
    """Close this process's end of the pipe by which the fork server notices that nobody needs it any more.

    multiprocessing hands that end to every child, so that children can fork too. An engine that keeps it
    keeps the fork server alive, which keeps the engine alive: after a ``kill -9`` of the server both would
    stay for ever. Python 3.11 to 3.14.
    """
    server = getattr(forkserver, "_forkserver", None)
    descriptor = getattr(server, "_forkserver_alive_fd", None)
    if server is not None and descriptor is not None:
        server._forkserver_alive_fd = None
        os.close(descriptor)


def redirect_output(path: str) -> None:
    """Write everything this process prints into a named pipe, from which the server makes log lines."""
    pipe = os.open(path, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(pipe, stream.fileno())
    os.close(pipe)


def _keep_progress_bars_to_this_process() -> None:
    """The lock of tqdm's bars is a semaphore with a name in ``/dev/shm``. It would outlive an engine that is
    killed, and servers unload by killing; no bar of an engine is shared with another process.
    """
    importlib.import_module("tqdm").tqdm.set_lock(threading.RLock())


def prepare_engine_process(settings: Mapping[str, Any]) -> None:
    """Make this process a good neighbour, before vLLM's worker is built.

    Args:
        settings: ``threads`` (OpenMP threads), ``cores`` (logical CPUs it may run on), ``title``; all
        optional.
    """
    die_with_parent()
    # Ctrl-C in a terminal reaches every process of the group. The server decides when an engine ends, so
    # that requests in flight are finished first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (cores := settings.get("cores")) and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in cores})
    if folder := settings.get("folder"):
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    if output := settings.get("output"):
        redirect_output(str(output))
    _keep_progress_bars_to_this_process()
    if title := settings.get("title"):
        import setproctitle

        setproctitle.setproctitle(str(title))
    if threads := settings.get("threads"):
        import torch

        # Now or never: vLLM's worker replaces torch.set_num_threads by a function that does nothing.
        torch.set_num_threads(int(threads))
