# SPDX-License-Identifier: Apache-2.0
"""The address the server listens on, and enough descriptors for those who connect to it."""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import stat
from pathlib import Path

_DESCRIPTORS = 65_535


class CannotListenError(OSError):
    """The address is taken, or is none; the message is one line that says what to change."""


def listen(args: argparse.Namespace) -> socket.socket:
    """The listening socket of ``--uds``, else of ``--host`` and ``--port``.

    It listens from now on, so that a second server on this address hears at once that it is taken. The
    socket file of a server that has ended is replaced: nothing removes it after a ``kill -9``.

    Raises CannotListenError.
    """
    address: str | tuple[str, int]
    if args.uds:
        listening, address, where = socket.socket(socket.AF_UNIX), args.uds, args.uds
        _remove_if_abandoned(Path(args.uds))
    else:
        host = args.host or "127.0.0.1"
        listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        address, where = (host, args.port), f"{host}:{args.port}"
    try:
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:  # the latter from a port over 65535
        listening.close()
        flags = "--uds" if args.uds else "--host and --port"
        reason = getattr(error, "strerror", None) or error
        raise CannotListenError(f"cannot listen on {where}: {reason}; choose another with {flags}") from None
    return listening


def stop_listening(args: argparse.Namespace) -> None:
    """Remove the socket file of ``--uds``, if there is one."""
    if args.uds:
        with contextlib.suppress(OSError):
            Path(args.uds).unlink()


def _remove_if_abandoned(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()


def allow_many_connections() -> None:
    """Raise the soft limit of open files towards the hard one: every connection is one, and the usual soft
    limit of 1,024 is less than the default of ``limits.max_concurrent_requests`` needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid it; then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
