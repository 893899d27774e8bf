# SPDX-License-Identifier: Apache-2.0
"""Servers in processes of their own, for measuring: this package's, and vLLM's own for comparison."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.machine import pss

_GIVE_UP_S = 300.0


class ServerProcess:
    """A command that serves HTTP on the port given as ``--port``, and one client of it.

    Args:
        command: without ``--port``.
        log: file its output goes to.
    """

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        # A program of the environment without its `bin` on the PATH would miss tools beside it (ninja).
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        with log.open("ab") as output:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                cwd=log.parent,
                env={**os.environ, "PATH": path},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        self.client = httpx.Client(base_url=self.url, timeout=_GIVE_UP_S)

    def wait_until_up(self) -> float:
        """Seconds from the command to the first answer of `/health`."""
        while time.perf_counter() - self.started < _GIVE_UP_S:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.TransportError):
                self.client.get("/health")
                return time.perf_counter() - self.started
            time.sleep(0.02)
        raise SystemExit(f"the server did not start:\n{self.log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> float:
        """Seconds from SIGTERM to the end of the process."""
        self.client.close()
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_GIVE_UP_S)
        return time.perf_counter() - began

    def kill(self) -> None:
        """End it with everything it started, if it still runs."""
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            self.process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Server(ServerProcess):
    """`vllm-axion serve` with a configuration file; its log is written beside that."""

    def __init__(self, config: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "vllm_axion.cli", "serve", str(config), *flags]
        super().__init__(command, config.with_name("server.log"))

    def chat(self, expert: str) -> tuple[float, float]:
        """A chat of one token: (seconds of the whole request, seconds of it spent waiting for a load)."""
        body = {"model": expert, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        began = time.perf_counter()
        response = self.client.post("/v1/chat/completions", json=body)
        took = time.perf_counter() - began
        response.raise_for_status()
        return took, int(response.headers["x-axion-load-ms"]) / 1000

    def stats(self, expert: str) -> dict[str, Any]:
        """The expert's part of `/stats`."""
        found: dict[str, Any] = self.client.get("/stats").json()["experts"][expert]
        return found

    def unload(self, expert: str) -> float:
        """Seconds until the engine's process is gone; returns once the state says so too."""
        pid = self.stats(expert)["pid"]
        began = time.perf_counter()
        self.client.post("/models/unload", json={"model": expert}).raise_for_status()
        while psutil.pid_exists(pid):
            time.sleep(0.005)
        took = time.perf_counter() - began
        while self.stats(expert)["state"] != "unloaded":
            time.sleep(0.01)
        return took

    def template_pid(self) -> int:
        """Process id of the engine template: the fork server."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "forkserver" in " ".join(child.cmdline()):
                    return child.pid
        raise ProcessLookupError("the server has no engine template")

    def shared_memory_holders(self) -> dict[str, int]:
        """PSS in bytes of the API process and of the template that engines are forked from."""
        return {"API process": pss(self.process.pid), "engine template": pss(self.template_pid())}


@contextlib.contextmanager
def serving(config: Path, *flags: str) -> Iterator[Server]:
    """A server that is gone afterwards, whatever happens."""
    server = Server(config, *flags)
    try:
        yield server
    finally:
        server.kill()


def write_config(models: Path, folder: Path, **lazy_loading: Any) -> Path:
    """The demo configuration with nothing loaded at start and nothing unloaded by itself.

    ``lazy_loading`` are further fields of that section.
    """
    config = json.loads((models / "config.demo.json").read_text(encoding="utf-8"))
    for expert in config["experts"]:
        expert["model_path"] = str(models / expert["expert_id"])
    config["lazy_loading"] |= {"warmup_pool_size": 0, "auto_unload_after_s": 0, **lazy_loading}
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
