# SPDX-License-Identifier: Apache-2.0
"""How much memory this process may use, how much is taken, and what one process holds.

The limit is the smallest of RAM and every cgroup limit between the process and the root of its hierarchy
(v2, v1, or both mounted side by side). Page cache does not count as used: the kernel gives it back before
it kills anything, and after loading a model from disk it is as large as the model.

Everything is read below ``root``, so that a test can lay out another machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil


@dataclass(frozen=True)
class MachineMemory:
    """``limit_bytes - used_bytes`` is what is still free at the tightest level (bytes)."""

    limit_bytes: int
    used_bytes: int
    source: str
    """``RAM``, ``cgroup v1`` or ``cgroup v2``: where the limit comes from."""

    @property
    def free_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class ProcessMemory:
    """Bytes. ``pss`` shares each page among the processes that map it (None where the kernel won't say)."""

    rss: int
    pss: int | None
    shared: int
    anonymous: int


def read_machine_memory(root: Path = Path("/")) -> MachineMemory:
    """The smallest memory limit above this process and what is used under it.

    Levels are nested and each has its own users (a pod's limit also covers the container next door), so
    ``used_bytes`` is set such that ``free_bytes`` is the smallest room left on any level.
    """
    levels = [_read_ram(root), *_read_cgroups(root)]
    tightest = min(levels, key=lambda level: level.limit_bytes)
    free = min(level.free_bytes for level in levels)
    return MachineMemory(tightest.limit_bytes, tightest.limit_bytes - free, tightest.source)


def process_memory(pid: int, root: Path = Path("/")) -> ProcessMemory:
    """What process ``pid`` holds, from its smaps_rollup, or by psutil where that cannot be read.

    Raises:
        ProcessLookupError: there is no such process, or it has ended.
    """
    try:
        rollup = _key_values(root / "proc" / str(pid) / "smaps_rollup")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        rollup = {}  # before Linux 4.14, gone, or not ours: psutil tells which
    if "Rss" in rollup:
        return ProcessMemory(
            rss=rollup["Rss"] * 1024,
            pss=rollup.get("Pss", 0) * 1024,
            shared=(rollup.get("Shared_Clean", 0) + rollup.get("Shared_Dirty", 0)) * 1024,
            anonymous=rollup.get("Anonymous", 0) * 1024,
        )
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        raise ProcessLookupError(f"no process {pid}") from None
    except psutil.AccessDenied:
        raise ProcessLookupError(f"process {pid} is not ours to read") from None
    shared = getattr(info, "shared", 0)
    return ProcessMemory(rss=info.rss, pss=None, shared=shared, anonymous=max(0, info.rss - shared))


# --- RAM -------------------------------------------------------------------------------------------------


def _read_ram(root: Path) -> MachineMemory:
    try:
        info = _key_values(root / "proc" / "meminfo")
    except OSError:
        info = {}
    total = info.get("MemTotal", 0) * 1024
    if not total:
        machine = psutil.virtual_memory()
        return MachineMemory(machine.total, machine.total - machine.available, "RAM")
    available = info.get("MemAvailable")
    if available is None:  # before Linux 3.14
        available = (
            info.get("MemFree", 0) + info.get("Cached", 0) + info.get("Buffers", 0) - info.get("Shmem", 0)
        )
    return MachineMemory(total, max(0, total - available * 1024), "RAM")


# --- cgroups ---------------------------------------------------------------------------------------------


def _read_cgroups(root: Path) -> Iterator[MachineMemory]:
    """Every level with a limit, of the v2 hierarchy and of v1's memory controller; either may be absent."""
    v2_path, v1_path = _own_cgroups(root)
    v2_mount, v1_mount = _cgroup_mounts(root)
    if v2_path is not None:
        for directory in _levels(v2_mount, v2_path):
            if (level := _read_v2_level(directory)) is not None:
                yield level
    if v1_path is not None:
        for directory in _levels(v1_mount, v1_path):
            if (level := _read_v1_level(directory)) is not None:
                yield level


def _own_cgroups(root: Path) -> tuple[str | None, str | None]:
    """(path in v2, path in v1's memory hierarchy) of this process, from lines ``id:controllers:path``."""
    v2 = v1 = None
    try:
        lines = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
    except OSError:
        return None, None
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            v2 = path
        elif "memory" in controllers.split(","):
            v1 = path
    return v2, v1


@dataclass(frozen=True)
class _Mount:
    point: Path
    shows: str
    """The part of the hierarchy that is mounted there: ``/``, or the container's own group."""


def _cgroup_mounts(root: Path) -> tuple[_Mount, _Mount]:
    """Where v2 and v1's memory controller are mounted; their customary places if mountinfo doesn't say."""
    v2 = _Mount(root / "sys/fs/cgroup", "/")
    v1 = _Mount(root / "sys/fs/cgroup/memory", "/")
    try:
        lines = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return v2, v1
    for line in lines:
        # "36 35 98:0 /shown /mount/point rw,noatime master:1 - cgroup source rw,memory" (proc(5))
        left, _, right = line.partition(" - ")
        fields, (kind, *options) = left.split(" "), right.split(" ") or [""]
        if len(fields) < 5:
            continue
        mount = _Mount(root / _unescape(fields[4]).lstrip("/"), _unescape(fields[3]))
        if kind == "cgroup2":
            v2 = mount
        elif kind == "cgroup" and "memory" in options[-1].split(","):
            v1 = mount
    return v2, v1


def _unescape(field: str) -> str:
    """mountinfo writes blanks and backslashes as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _levels(mount: _Mount, path: str) -> Iterator[Path]:
    """Directories from the process's group up to the mount's top, those that are visible here.

    Without a cgroup namespace a container sees the host's path in /proc/self/cgroup, but only its own
    group mounted; with one, groups above it read ``/..``. Both end at what the mount shows.
    """
    shown = mount.shows.rstrip("/")
    inside = path[len(shown) :] if path == shown or path.startswith(shown + "/") else ""
    parts = [part for part in PurePosixPath(inside).parts if part not in ("/", "..", ".")]
    for depth in range(len(parts), -1, -1):
        directory = mount.point.joinpath(*parts[:depth])
        if directory.is_dir():
            yield directory


def _read_v2_level(directory: Path) -> MachineMemory | None:
    # Over memory.high the kernel throttles the group nearly to a stand-still: as hard a limit as max.
    limits = [n for name in ("memory.max", "memory.high") if (n := _number(directory / name)) is not None]
    current = _number(directory / "memory.current")
    if not limits or current is None:
        return None
    stat = _stat(directory / "memory.stat")
    # shmem is on the anonymous lists, not on these: it is really used.
    cache = stat.get("inactive_file", 0) + stat.get("active_file", 0)
    return MachineMemory(min(limits), max(0, current - cache), "cgroup v2")


def _read_v1_level(directory: Path) -> MachineMemory | None:
    limit = _number(directory / "memory.limit_in_bytes")
    usage = _number(directory / "memory.usage_in_bytes")
    if limit is None or usage is None:
        return None
    stat = _stat(directory / "memory.stat")
    # Also tells limits of groups above that are not mounted here.
    limit = min(limit, stat.get("hierarchical_memory_limit", limit))
    # "Unlimited" is 2^63 less a page: far above any RAM, so that it never is the smallest.
    cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
    return MachineMemory(limit, max(0, usage - cache), "cgroup v1")


def _number(path: Path) -> int | None:
    """The whole number in a cgroup file; None for ``max``, -1, or no such file."""
    try:
        value = int(path.read_text())
    except (OSError, ValueError):
        return None
    return value if value >= 0 else None


def _stat(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split() for line in lines)
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _key_values(path: Path) -> dict[str, int]:
    """``Name:   123 kB`` lines of meminfo and smaps_rollup, in kB."""
    return {
        m[1]: int(m[2]) for m in re.finditer(r"^(\w+):\s+(\d+) kB$", path.read_text(errors="replace"), re.M)
    }
