# SPDX-License-Identifier: Apache-2.0
"""What a server leaves on disk: nothing, and nobody else may look meanwhile."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from vllm_axion.serving.run_directory import run_directory


def abandoned(parent: Path, pid: int) -> Path:
    folder = parent / f"vllm-axion-{pid}-abc123"
    folder.mkdir()
    (folder / "socket").touch()
    return folder


@pytest.fixture(autouse=True)
def _parent(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own folders are too long for sockets; what is tested here holds for any length.
    monkeypatch.setattr("vllm_axion.serving.run_directory._LONGEST_PARENT", 4096)


def test_the_folder_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with run_directory(tmp_path) as folder:
        assert folder.parent == tmp_path and str(os.getpid()) in folder.name
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "left").write_text("behind")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_gone_after_an_error_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), run_directory(tmp_path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_servers_are_removed_and_those_of_running_ones_kept(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = abandoned(tmp_path, ended.pid), abandoned(tmp_path, os.getpid())
    with run_directory(tmp_path):
        assert not dead.exists()
        assert (alive / "socket").exists()


def test_the_folder_of_a_server_in_another_container_is_kept(tmp_path: Path) -> None:
    with run_directory(tmp_path) as theirs:
        # Seen from here its process id is nobody's.
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        renamed = theirs.rename(tmp_path / f"vllm-axion-{ended.pid}-abc123")
        with run_directory(tmp_path):
            assert renamed.exists()
        renamed.rename(theirs)


def test_a_running_server_holds_the_lock_that_keeps_its_folder_from_being_tidied_away(tmp_path: Path) -> None:
    with run_directory(tmp_path) as folder:
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_nothing_that_only_looks_like_it_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    elsewhere = tmp_path / "precious"
    elsewhere.mkdir()
    (tmp_path / f"vllm-axion-{ended.pid}-link").symlink_to(elsewhere)
    (tmp_path / "vllm-axion-notes").mkdir()
    (tmp_path / "vllm-axion-12x-abc").mkdir()
    before = sorted(p.name for p in tmp_path.iterdir())
    with run_directory(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_sockets_have_names_the_kernel_takes_however_long_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    long = tmp_path / ("x" * 60)
    long.mkdir()
    with run_directory(long) as folder:
        socket_name = folder / "tmp12345678" / str(uuid.uuid4())
        assert len(os.fsencode(socket_name)) <= 103
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()
