# SPDX-License-Identifier: Apache-2.0
"""A private folder for what a running server leaves on disk: sockets to its engines, temporary files."""

from __future__ import annotations

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

    Folders that servers killed by force left behind are removed too, if they are this user's.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    if len(os.fsencode(parent)) > _LONGEST_PARENT and _SHORT_PARENT.is_dir():
        parent = _SHORT_PARENT
    _remove_abandoned(parent)
    made = Path(tempfile.mkdtemp(prefix=f"vllm-axion-{os.getpid()}-", dir=parent))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for found in parent.glob("vllm-axion-*"):
        match = _NAME.fullmatch(found.name)
        if match is None or found.is_symlink():
            continue
        try:
            ours = found.stat().st_uid == os.getuid()
        except OSError:
            continue
        if ours and not Path(f"/proc/{match[1]}").exists():
            shutil.rmtree(found, ignore_errors=True)
