# SPDX-License-Identifier: Apache-2.0
"""The process an engine lives in: its environment, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from vllm_axion.serving.engine_process import ARCHITECTURES_VARIABLE, engine_environment


def preloaded(environment: dict[str, str]) -> list[str]:
    return [Path(p).name for p in environment.get("LD_PRELOAD", "").split(":") if p]


def test_engines_have_one_openmp_runtime_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    environment = engine_environment(["A", "B"])
    openmp = [name for name in preloaded(environment) if "omp" in name]
    assert len(openmp) == 1 and openmp[0].startswith("libgomp")
    assert all(Path(p).is_file() for p in environment["LD_PRELOAD"].split(":"))
    assert environment[ARCHITECTURES_VARIABLE] == "A,B"


def test_idle_threads_sleep_even_if_the_user_had_them_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert engine_environment([])["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("theirs", ["libgomp.so.1", "libiomp5.so", "libomp.so"])
def test_an_openmp_runtime_the_user_preloads_is_the_only_one(
    monkeypatch: pytest.MonkeyPatch, theirs: str
) -> None:
    monkeypatch.setenv("LD_PRELOAD", f"/opt/one/liballoc.so:/opt/two/{theirs}")
    names = preloaded(engine_environment([]))
    assert names[:2] == ["liballoc.so", theirs], "what the user preloads stays, and stays first"
    assert sum("omp" in name for name in names) == 1


def test_an_allocator_the_user_preloads_is_not_given_a_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libtcmalloc_minimal.so.4")
    assert sum("tcmalloc" in name for name in preloaded(engine_environment([]))) == 1


def test_warnings_the_user_asked_for_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    assert engine_environment([])["PYTHONWARNINGS"] == "error"
    monkeypatch.delenv("PYTHONWARNINGS")
    assert engine_environment([])["PYTHONWARNINGS"] == "ignore"


def run(program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("dies", [True, False])
def test_a_child_ends_when_its_parent_is_killed(dies: bool) -> None:
    parent = run(
        f"""
        import os, time
        from vllm_axion.serving.engine_process import die_with_parent
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            if {dies}:
                die_with_parent()
            os.write(write, b"x")
            time.sleep(60)
        os.read(read, 1)
        print(child, flush=True)
        time.sleep(60)
        """
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert not gone(child, 0.2)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    try:
        assert gone(child, 2.0 if dies else 0.5) is dies, (
            "the kernel's doing, not the end of the parent's pipe"
        )
    finally:
        if not dies:
            os.kill(child, signal.SIGKILL)


def test_a_forked_process_does_not_outlive_a_killed_server() -> None:
    # The fork server ends when nobody holds its pipe any more; its children hold it too unless they let go.
    program = Path(__file__).with_name("forking_server.py")
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child, template = map(int, process.stdout.readline().split())
    process.kill()
    process.wait()
    process.stdout.close()
    assert gone(child, 5.0) and gone(template, 5.0)


def test_an_engine_is_told_its_name_threads_cores_and_folder(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    engine = run(
        f"""
        import os, signal, tempfile, torch
        from vllm_axion.serving.engine_process import prepare_engine_process
        prepare_engine_process(
            {{"threads": 1, "cores": [{core}], "title": "vllm-axion: one", "folder": {str(tmp_path)!r}}}
        )
        print(torch.get_num_threads(), sorted(os.sched_getaffinity(0)), tempfile.gettempdir())
        print(open("/proc/self/cmdline").read().rstrip(chr(0)))
        print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)
        """
    )
    output, _ = engine.communicate(timeout=60)
    assert output.splitlines() == [f"1 [{core}] {tmp_path}", "vllm-axion: one", "True"]


def test_what_is_not_told_stays_as_it_was() -> None:
    engine = run(
        """
        import os, tempfile
        from vllm_axion.serving.engine_process import prepare_engine_process
        before = os.sched_getaffinity(0), tempfile.gettempdir()
        prepare_engine_process({})
        print((os.sched_getaffinity(0), tempfile.gettempdir()) == before)
        """
    )
    assert engine.communicate(timeout=60)[0] == "True\n"


_ENGINE_WITH_A_BAR = """
    import multiprocessing, os, sys
    from tqdm import tqdm
    from vllm_axion.serving import engine_process

    multiprocessing.set_start_method("forkserver")
    if sys.argv[1] == "prepared":
        engine_process.prepare_engine_process({})
    before = set(os.listdir("/dev/shm"))
    list(tqdm(range(3)))
    print(len(set(os.listdir("/dev/shm")) - before), flush=True)
"""


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="this machine has no /dev/shm")
def test_progress_bars_of_an_engine_make_no_semaphore_that_would_outlive_it(tmp_path: Path) -> None:
    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(_ENGINE_WITH_A_BAR))

    def semaphores(how: str) -> int:
        command = [sys.executable, str(script), how]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return int(ended.stdout)

    assert semaphores("plain") > 0, "tqdm makes none by itself: the lock set in engines may go"
    assert semaphores("prepared") == 0
