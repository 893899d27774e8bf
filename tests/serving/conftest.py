# SPDX-License-Identifier: Apache-2.0
"""Real servers for tests: the `vllm-axion` command on a free port, with the demo experts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

STARTS_WITHIN_S = 180.0
STOPS_WITHIN_S = 60.0


@dataclass
class RunningServer:
    """A server process and how to talk to it."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        return self.process.pid

    def http(self, **options: Any) -> httpx.Client:
        """A client of this server; use it as a context."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=120, **options)

    def openai(self, api_key: str = "none") -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, timeout=120, max_retries=0)

    def get(self, path: str) -> Any:
        """JSON of a GET."""
        with self.http() as client:
            return client.get(path).json()

    def expert(self, expert_id: str) -> dict[str, Any]:
        """The expert's part of `/stats`."""
        found: dict[str, Any] = self.get("/stats")["experts"][expert_id]
        return found

    def wait_until(self, condition: Callable[[], bool], within_s: float = 60.0, what: str = "") -> None:
        """Wait for something to become true; fails with the server's log if it does not."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}\n{self.tail()}"
            time.sleep(0.05)

    def wait_for_state(self, expert_id: str, state: str, within_s: float = 60.0) -> None:
        """Wait until an expert is in a state of `/stats`."""
        self.wait_until(lambda: self.expert(expert_id)["state"] == state, within_s, f"{expert_id} {state}")

    def descendants(self) -> list[psutil.Process]:
        """Every process this server has started: fork server, engines, resource tracker."""
        return psutil.Process(self.pid).children(recursive=True)

    def tail(self) -> str:
        """The end of the server's output."""
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the server did not stop\n{self.tail()}") from None


StartServer = Callable[..., RunningServer]


def demo_config(demo_models: Path, **changes: Any) -> dict[str, Any]:
    """The demo configuration with absolute model paths; `changes` are merged into its sections.

    `experts={"qwen_coder": {...}}` changes fields of one expert, `only=[...]` keeps some experts.
    """
    config: dict[str, Any] = json.loads((demo_models / "config.demo.json").read_text())
    config.pop("$schema", None)
    for expert in config["experts"]:
        expert["model_path"] = str(demo_models / expert["expert_id"])
        expert.update(changes.get("experts", {}).get(expert["expert_id"], {}))
    if (only := changes.get("only")) is not None:
        config["experts"] = [e for e in config["experts"] if e["expert_id"] in only]
    for section, fields in changes.items():
        if section not in ("experts", "only"):
            config[section] = {**config.get(section, {}), **fields}
    return config


@pytest.fixture(scope="session")
def start_server(demo_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """`start_server(*flags, command=…, **changes)`: a server with `demo_config(**changes)`, stopped at the
    end.
    """
    started: list[RunningServer] = []

    def start(
        *flags: str,
        command: tuple[str, ...] | None = None,
        environment: dict[str, str] | None = None,
        wait: bool = True,
        **changes: Any,
    ) -> RunningServer:
        folder = tmp_path_factory.mktemp("server")
        folder.chmod(0o755)
        config = folder / "config.json"
        config.write_text(json.dumps(demo_config(demo_models, **changes)))
        port = _free_port()
        launcher = command or (str(Path(sys.executable).parent / "vllm-axion"), "serve", "{config}")
        line = [part.format(config=config) for part in launcher] + ["--port", str(port), *flags]
        log = folder / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                cwd=folder,
            )
        server = RunningServer(process, f"http://127.0.0.1:{port}", log)
        started.append(server)
        if wait:
            _wait_until_up(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> RunningServer:
    """One server for all tests that leave it as they found it: five demo experts, room for all."""
    return start_server(lazy_loading={"auto_unload_after_s": 3600})


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(server: RunningServer) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert server.process.poll() is None, f"the server ended\n{server.tail()}"
        assert time.monotonic() < deadline, f"the server did not answer\n{server.tail()}"
        try:
            httpx.get(f"{server.url}/health", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
