# SPDX-License-Identifier: Apache-2.0
"""Real servers for tests: the `vllm-axion` command on a free port, with the demo experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.running_server import RunningServer, StartServer, demo_config, free_port, wait_until_up


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
        port = free_port()
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
            wait_until_up(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> RunningServer:
    """One server for all tests that leave it as they found it: five demo experts, room for all."""
    return start_server(lazy_loading={"auto_unload_after_s": 3600})
