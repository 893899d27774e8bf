# SPDX-License-Identifier: Apache-2.0
"""A private folder for what a running server leaves on disk: sockets to its engines, temporary files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHORT_PARENT = Path("/tmp")
_LONGEST_PARENT = 103 - len("/vllm-axion-4194304-12345678/tmp12345678/") - 36
"""Bytes: the address of a Unix socket holds 103 of them (macOS; Linux 107), vLLM's name of one takes 36."""

_NAME = re.compile(r"vllm-axion-(\d+)-\w+")


@contextmanager
def run_directory(parent: Path | None = None) -> Iterator[Path]:
    """A new folder only this user can enter, gone afterwards: in ``parent``, by default the system's folder
    for temporary files, or in ``/tmp`` if the names of sockets in there would be longer than they may be.

    Folders that servers killed by force left behind are removed too, if they are this user's. A lock on the
    folder says that its server lives: process ids say nothing to a server in another container that shares
    the parent. systemd-tmpfiles leaves locked folders alone as well, however old they are.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if len(os.fsencode(parent)) > _LONGEST_PARENT and _SHORT_PARENT.is_dir():
        parent = _SHORT_PARENT
    _remove_abandoned(parent)
    made = Path(tempfile.mkdtemp(prefix=f"vllm-axion-{os.getpid()}-", dir=parent))
    lock = _lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_abandoned(parent: Path) -> None:
    for found in parent.glob("vllm-axion-*"):
        match = _NAME.fullmatch(found.name)
        if match is None or found.is_symlink():
            continue
        try:
            ours = found.stat().st_uid == os.getuid()
        except OSError:
            continue
        if ours and not Path(f"/proc/{match[1]}").exists() and (lock := _lock(found)) is not None:
            shutil.rmtree(found, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock while it is open; None if another process has it, or where
    the file system has no locks.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    if descriptor is not None:
        os.close(descriptor)
    return None
