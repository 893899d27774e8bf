# SPDX-License-Identifier: Apache-2.0
"""Addresses: taken, free, left behind, and none at all."""

from __future__ import annotations

import argparse
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_axion.serving.listening import CannotListenError, listen, stop_listening


def arguments(host: str | None = None, port: int = 0, uds: str | None = None) -> argparse.Namespace:
    return argparse.Namespace(host=host, port=port, uds=uds)


@pytest.fixture
def path() -> Iterator[str]:
    # pytest's own folders are too long for the name of a socket.
    with tempfile.TemporaryDirectory() as folder:
        yield str(Path(folder) / "server")


def test_without_a_host_nobody_but_this_machine_is_listened_to() -> None:
    for host in (None, ""):
        with listen(arguments(host)) as listening:
            assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="a machine without IPv6")
def test_ipv6_addresses_are_taken_as_they_are() -> None:
    with listen(arguments("::1")) as listening:
        assert listening.getsockname()[0] == "::1"


def test_an_address_that_is_taken_is_said_in_one_line() -> None:
    with listen(arguments()) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(CannotListenError, match=rf"^cannot listen on 127\.0\.0\.1:{port}: .*--port$"):
            listen(arguments(port=port))


def test_an_address_that_cannot_be_is_said_in_one_line() -> None:
    for wrong in (arguments(port=70_000), arguments("host.invalid"), arguments(uds="/nowhere/at/all")):
        with pytest.raises(CannotListenError, match="cannot listen on"):
            listen(wrong)


def test_the_socket_file_of_a_server_that_was_killed_is_replaced(path: str) -> None:
    with listen(arguments(uds=path)):
        pass  # closed, but its file stays
    assert Path(path).is_socket()
    with listen(arguments(uds=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_the_socket_file_of_a_running_server_is_left_alone(path: str) -> None:
    with listen(arguments(uds=path)) as first:
        with pytest.raises(CannotListenError, match="--uds"):
            listen(arguments(uds=path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            first.accept()[0].close()
            first.accept()[0].close()


def test_a_file_that_is_no_socket_is_never_removed(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(CannotListenError):
        listen(arguments(uds=path))
    assert Path(path).read_text() == "precious"


def test_a_server_that_ends_takes_its_socket_file_with_it(path: str) -> None:
    with listen(arguments(uds=path)):
        stop_listening(arguments(uds=path))
    assert not Path(path).exists()
    stop_listening(arguments(uds=path))
    stop_listening(arguments())


def test_open_files_are_allowed_up_to_the_hard_limit() -> None:
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 4096)
    code = (
        "import resource; from vllm_axion.serving.listening import allow_many_connections\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "allow_many_connections(); print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(hard), str(hard)]
