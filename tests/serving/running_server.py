# SPDX-License-Identifier: Apache-2.0
"""A real server in a process of its own, as tests see it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

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
            config[section] = {**config.get(section, {}), **fields} if isinstance(fields, dict) else fields
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_up(server: RunningServer) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        assert server.process.poll() is None, f"the server ended\n{server.tail()}"
        assert time.monotonic() < deadline, f"the server did not answer\n{server.tail()}"
        try:
            httpx.get(f"{server.url}/health", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
