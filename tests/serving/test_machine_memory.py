# SPDX-License-Identifier: Apache-2.0
"""Machines laid out as files: what limits a process, and what counts as used."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vllm_axion.serving.machine_memory import process_memory, read_machine_memory

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30
V1_UNLIMITED = 9223372036854771712

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"


class Machine:
    """A tree of the kernel's files below ``root``."""

    def __init__(self, root: Path, total: int = 64 * GiB, available: int = 60 * GiB) -> None:
        self.root = root
        self.write(
            "proc/meminfo",
            f"MemTotal:       {total // KiB} kB\nMemFree:        1024 kB\n"
            f"MemAvailable:   {available // KiB} kB\n"
            "HugePages_Total:       0\n",
        )

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n" if isinstance(text, int) else text)

    def process(self, cgroup: str, mountinfo: str | None = None) -> None:
        self.write("proc/self/cgroup", cgroup)
        if mountinfo is not None:
            self.write("proc/self/mountinfo", mountinfo)

    def v2(
        self, group: str, limit: int | str, current: int = 0, *, high: int | str = "max", **stat: int
    ) -> None:
        base = f"sys/fs/cgroup/{group}"
        self.write(f"{base}/memory.max", f"{limit}\n")
        self.write(f"{base}/memory.high", f"{high}\n")
        self.write(f"{base}/memory.current", current)
        self.write(f"{base}/memory.stat", "".join(f"{key} {value}\n" for key, value in stat.items()))

    def v1(self, group: str, limit: int, usage: int = 0, **stat: int) -> None:
        base = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{base}/memory.limit_in_bytes", limit)
        self.write(f"{base}/memory.usage_in_bytes", usage)
        self.write(f"{base}/memory.stat", "".join(f"{key} {value}\n" for key, value in stat.items()))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def read(machine: Machine) -> tuple[int, int, str]:
    memory = read_machine_memory(machine.root)
    return memory.limit_bytes, memory.used_bytes, memory.source


def test_without_cgroups_ram_is_the_limit_and_page_cache_is_not_used(machine: Machine) -> None:
    assert read(machine) == (64 * GiB, 4 * GiB, "RAM")


def test_kernel_without_memavailable_counts_the_cache_as_free_but_not_shared_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write(
        "proc/meminfo",
        "MemTotal: 8388608 kB\nMemFree: 1048576 kB\nBuffers: 0 kB\nCached: 4194304 kB\nShmem: 1048576 kB\n",
    )
    assert read(machine) == (8 * GiB, 4 * GiB, "RAM")


def test_without_proc_the_limit_is_this_machines_ram(tmp_path: Path) -> None:
    assert read_machine_memory(tmp_path).limit_bytes == psutil.virtual_memory().total


def test_v2_container_with_its_own_namespace(machine: Machine) -> None:
    machine.process("0::/\n", V2_MOUNT)
    machine.v2(
        "", 8 * GiB, 6 * GiB, anon=GiB, file=5 * GiB, shmem=2 * GiB, inactive_file=2 * GiB, active_file=GiB
    )
    # 6 GiB less the 3 GiB of cache on the file lists; the 2 GiB of shmem stay counted
    assert read(machine) == (8 * GiB, 3 * GiB, "cgroup v2")


def test_v2_service_without_namespace_is_found_by_its_path(machine: Machine) -> None:
    machine.process("0::/system.slice/axion.service\n", V2_MOUNT)
    machine.v2("system.slice", "max", 30 * GiB)
    machine.v2("system.slice/axion.service", 16 * GiB, 2 * GiB)
    machine.v2("user.slice", 1 * GiB, 1 * GiB)  # a neighbour's limit is not ours
    assert read(machine) == (16 * GiB, 2 * GiB, "cgroup v2")


def test_v2_limit_of_a_parent_counts(machine: Machine) -> None:
    machine.process("0::/pods/pod1/container\n", V2_MOUNT)
    machine.v2("pods/pod1", 4 * GiB, 2 * GiB)
    machine.v2("pods/pod1/container", "max", 1 * GiB)
    assert read(machine) == (4 * GiB, 2 * GiB, "cgroup v2")


def test_room_is_the_smallest_of_all_levels_even_when_its_limit_is_not(machine: Machine) -> None:
    """The container's limit is smaller, but its neighbour in the pod has left only 1 GiB of the pod's."""
    machine.process("0::/pods/pod1/container\n", V2_MOUNT)
    machine.v2("pods/pod1", 8 * GiB, 7 * GiB)
    machine.v2("pods/pod1/container", 6 * GiB, 1 * GiB)
    memory = read_machine_memory(machine.root)
    assert (memory.limit_bytes, memory.free_bytes) == (6 * GiB, 1 * GiB)


def test_room_in_ram_counts_when_others_have_taken_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, total=64 * GiB, available=2 * GiB)
    machine.process("0::/\n", V2_MOUNT)
    machine.v2("", 8 * GiB, 1 * GiB)
    memory = read_machine_memory(machine.root)
    assert (memory.limit_bytes, memory.free_bytes) == (8 * GiB, 2 * GiB)


def test_v2_memory_high_is_a_limit(machine: Machine) -> None:
    machine.process("0::/\n", V2_MOUNT)
    machine.v2("", 8 * GiB, 0, high=6 * GiB)
    assert read(machine)[0] == 6 * GiB


def test_v2_limit_above_ram_leaves_ram_as_limit(machine: Machine) -> None:
    machine.process("0::/\n", V2_MOUNT)
    machine.v2("", 512 * GiB, 4 * GiB)
    assert read(machine) == (64 * GiB, 4 * GiB, "RAM")


def test_v2_root_group_has_no_memory_files(machine: Machine) -> None:
    machine.process("0::/\n", V2_MOUNT)
    machine.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
    assert read(machine) == (64 * GiB, 4 * GiB, "RAM")


def test_v2_without_mountinfo_is_looked_for_in_its_customary_place(machine: Machine) -> None:
    machine.process("0::/box\n")
    machine.v2("box", 2 * GiB, 1 * GiB)
    assert read(machine) == (2 * GiB, 1 * GiB, "cgroup v2")


def test_v1_limit_and_its_hierarchical_cache(machine: Machine) -> None:
    machine.process(
        "9:memory:/docker/abc\n0::/\n",
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n",
    )
    machine.v1("", V1_UNLIMITED, 50 * GiB)
    machine.v1(
        "docker/abc", 8 * GiB, 5 * GiB, inactive_file=0, total_inactive_file=GiB, total_active_file=2 * GiB,
        hierarchical_memory_limit=8 * GiB,
    )  # fmt: skip
    assert read(machine) == (8 * GiB, 2 * GiB, "cgroup v1")


def test_v1_container_sees_the_hosts_path_but_only_its_own_group_mounted(machine: Machine) -> None:
    machine.process(
        "12:memory:/docker/abc\n11:cpu,cpuacct:/docker/abc\n",
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory\n",
    )
    machine.v1("", 4 * GiB, 1 * GiB)
    assert read(machine) == (4 * GiB, 1 * GiB, "cgroup v1")


def test_v1_limit_of_a_parent_that_is_not_mounted_here(machine: Machine) -> None:
    machine.process(
        "12:memory:/kubepods/pod1/abc\n",
        "35 31 0:32 /kubepods/pod1/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    )
    machine.v1("", V1_UNLIMITED, 1 * GiB, hierarchical_memory_limit=3 * GiB)
    assert read(machine) == (3 * GiB, 1 * GiB, "cgroup v1")


def test_v1_unlimited_leaves_ram_as_limit(machine: Machine) -> None:
    machine.process("4:memory:/\n")
    machine.v1("", V1_UNLIMITED, 4 * GiB)
    assert read(machine) == (64 * GiB, 4 * GiB, "RAM")


def test_hybrid_machine_with_an_empty_v2_mount_uses_v1(machine: Machine) -> None:
    """v2 is mounted beside v1 without a memory controller, as systemd's hybrid layout does."""
    machine.process(
        "9:name=systemd:/\n4:memory:/jobs/1\n1:cpu:/\n0::/\n",
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
    )
    machine.write("sys/fs/cgroup/unified/cgroup.controllers", "\n")
    machine.write("sys/fs/cgroup/unified/memory.pressure", "some avg10=0.00\n")
    machine.v1("", V1_UNLIMITED, 20 * GiB)
    machine.v1("jobs/1", 10 * GiB, 3 * GiB, total_inactive_file=GiB)
    assert read(machine) == (10 * GiB, 2 * GiB, "cgroup v1")


def test_namespace_with_the_process_outside_it_ends_at_the_mount(machine: Machine) -> None:
    machine.process("0::/../../elsewhere\n", V2_MOUNT)
    machine.v2("", 5 * GiB, 1 * GiB)
    assert read(machine)[0] == 5 * GiB


def test_mount_point_with_a_blank_in_its_name(machine: Machine) -> None:
    machine.process("0::/\n", "31 23 0:28 / /mnt/my\\040groups rw shared:1 master:2 - cgroup2 none rw\n")
    machine.write("mnt/my groups/memory.max", 7 * GiB)
    machine.write("mnt/my groups/memory.current", 1 * GiB)
    assert read(machine) == (7 * GiB, 1 * GiB, "cgroup v2")


def test_garbage_in_the_kernels_files_never_raises(machine: Machine) -> None:
    machine.process("nonsense\n::::\n0::/x\n:memory\n", "short - \n\n - - - \n\\777 a b c d e - cgroup2\n")
    machine.v2("x", "many", 0)
    machine.write("sys/fs/cgroup/memory.stat", "one two three\ninactive_file minus\n")
    assert read(machine)[0] == 64 * GiB


def test_this_machine_has_a_limit_and_some_of_it_is_used() -> None:
    memory = read_machine_memory()
    assert 0 < memory.used_bytes < memory.limit_bytes <= psutil.virtual_memory().total


def test_process_memory_tells_own_from_shared_pages() -> None:
    before = process_memory(os.getpid())
    with mmap.mmap(-1, 64 * MiB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        after = process_memory(os.getpid())
    assert after.anonymous - before.anonymous > 60 * MiB
    assert after.rss - before.rss > 60 * MiB
    assert after.pss is not None and after.anonymous <= after.rss


def test_process_memory_without_smaps_rollup_comes_from_psutil(tmp_path: Path) -> None:
    memory = process_memory(os.getpid(), root=tmp_path)
    assert memory.pss is None
    assert memory.rss == pytest.approx(psutil.Process().memory_info().rss, rel=0.2)


def test_process_memory_reads_the_rollup_in_bytes(tmp_path: Path) -> None:
    rollup = tmp_path / "proc" / "7" / "smaps_rollup"
    rollup.parent.mkdir(parents=True)
    rollup.write_text(
        "55da6b5fa000-7ffca2f00000 ---p 00000000 00:00 0                          [rollup]\n"
        "Rss:                1748 kB\nPss:                 332 kB\nPss_Anon:            112 kB\n"
        "Shared_Clean:       1584 kB\nShared_Dirty:          4 kB\nAnonymous:           112 kB\n"
    )
    memory = process_memory(7, root=tmp_path)
    assert (memory.rss, memory.pss, memory.shared, memory.anonymous) == (
        1748 * KiB, 332 * KiB, 1588 * KiB, 112 * KiB,
    )  # fmt: skip


def test_process_memory_of_an_ended_process_says_so() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessLookupError):
        process_memory(child.pid)
