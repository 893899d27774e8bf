# SPDX-License-Identifier: Apache-2.0
"""What a user gets: the wheel and the source distribution."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

SOURCE_SUFFIXES = {".py", ".pyi", ".json", ".typed", ".safetensors", ".tsv"}


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    # A build folder of its own: the one in the clone may be another build's, under way.
    command += ["--wheel-dir", str(out), f"-Cbuild-dir={out / 'build'}", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    return Parser().parsestr(wheel.read("vllm_axion-0.1.0.dist-info/METADATA").decode())


def package_files(repository: Path) -> set[str]:
    """Every file of the package but what was built there."""
    found = [path for path in (repository / "vllm_axion").rglob("*") if path.suffix in SOURCE_SUFFIXES]
    return {str(path.relative_to(repository)) for path in found}


def test_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile, repository: Path) -> None:
    expected = package_files(repository)
    assert {"vllm_axion/__init__.py", "vllm_axion/py.typed", "vllm_axion/_kernels.pyi"} <= expected
    assert expected <= set(wheel.namelist())


def test_wheel_holds_the_presets_and_the_schema(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    presets = {name for name in names if name.startswith("vllm_axion/configs/") and name.endswith(".json")}
    assert "vllm_axion/configs/config.five_models_all_working.json" in presets
    assert "vllm_axion/configs/config.demo.json" in presets
    assert "vllm_axion/serving/config.schema.json" in names


def test_wheel_holds_one_extension_and_nothing_else_that_was_built(wheel: zipfile.ZipFile) -> None:
    inside = [name for name in wheel.namelist() if ".dist-info/" not in name]
    odd = [name for name in inside if Path(name).suffix not in SOURCE_SUFFIXES]
    assert len(odd) == 1, odd
    assert odd[0].startswith("vllm_axion/_kernels.") and odd[0].endswith(".so")
    assert {name.split("/")[0] for name in inside} == {"vllm_axion"}


def test_installing_never_replaces_torch_or_vllm(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    assert requirements
    assert not [r for r in requirements if r.name.startswith(("torch", "vllm"))]


# With vLLM and by it: what makes models, reads them, draws their progress, or traces their requests.
OF_VLLM = {"vllm", "torch", "transformers", "tokenizers", "huggingface_hub", "tqdm", "opentelemetry"}
MODULES = {"prometheus_client": "prometheus-client", "pydantic_core": "pydantic"}
"""Modules whose distribution is not just their name with hyphens."""


def imported_packages(repository: Path) -> set[str]:
    """Top-level names of everything the package imports, inside functions too."""
    found: set[str] = set()
    for path in (repository / "vllm_axion").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"vllm_axion"}


def distributions(lines: Iterable[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", Requirement(line).name).lower() for line in lines}


def test_what_is_imported_is_required_and_nothing_else_is(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    extras = {name: lines for name, lines in project["optional-dependencies"].items() if name != "dev"}
    required = distributions(project["dependencies"])
    optional = distributions(line for lines in extras.values() for line in lines)
    imported = {MODULES.get(name, name.replace("_", "-")) for name in imported_packages(repository) - OF_VLLM}
    assert imported - required <= optional, "imported, and not even an extra brings it"
    assert required <= imported, "brought, and never imported"


def test_metadata_names_licence_python_and_version(metadata: Message, wheel: zipfile.ZipFile) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Version"] == "0.1.0"
    assert b"Apache License" in wheel.read("vllm_axion-0.1.0.dist-info/licenses/LICENSE")


def test_entry_points_are_those_vllm_looks_for(wheel: zipfile.ZipFile) -> None:
    text = wheel.read("vllm_axion-0.1.0.dist-info/entry_points.txt").decode()
    sections = {block.splitlines()[0]: block.splitlines()[1:] for block in text.strip().split("\n\n")}
    assert sections["[console_scripts]"] == ["vllm-axion = vllm_axion.cli:main"]
    assert sections["[vllm.platform_plugins]"] == ["axion = vllm_axion:platform_plugin"]
    assert sections["[vllm.general_plugins]"] == ["axion = vllm_axion:register"]


def test_extension_of_the_wheel_loads_without_the_clone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from vllm_axion import _kernels\nfrom vllm_axion.kernels import detect\n"
        "print(_kernels.__file__); print(detect().machine)"
    )
    # -S: no site-packages, so no editable install that leads back to the clone.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_source_distribution_builds_the_same_package(repository: Path, tmp_path: Path) -> None:
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"CMakeLists.txt", "LICENSE", "pyproject.toml", "csrc/neon/cpu_features.cpp"}
    assert needed | package_files(repository) <= names
    assert not [
        name for name in names if name.endswith(".so") or name.startswith((".venv", "models", "build/"))
    ]


def test_data_files_of_the_editable_install_are_live(repository: Path) -> None:
    from importlib import resources

    preset = resources.files("vllm_axion") / "configs" / "config.demo.json"
    assert preset.read_text() == (repository / "vllm_axion/configs/config.demo.json").read_text()
    assert (repository / "entrypoints/configs/config.demo.json").samefile(str(preset))
