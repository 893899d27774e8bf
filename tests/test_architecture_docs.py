# SPDX-License-Identifier: Apache-2.0
"""`docs/architecture.md` against the tree: every module is listed, and who may import whom is obeyed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools import architecture_page

MODULES = architecture_page.modules()


@dataclass(frozen=True)
class Import:
    """One imported module, and whether merely importing the file imports it."""

    name: str
    at_once: bool


def imports(module: Path) -> Iterator[Import]:
    """What a module imports, at its top or inside functions; what only type checkers see is left out."""
    tree = ast.parse((architecture_page.ROOT / module).read_text(encoding="utf-8"))
    package = list(module.parent.parts)

    def visit(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import name`: the name may be a module.
            yield from (Import(f"{parent}.{alias.name}", at_once) for alias in node.names)
        elif (name := _imported_by_name(node)) is not None:
            yield Import(name, at_once)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from visit(tree, True)


def _imported_by_name(node: ast.AST) -> str | None:
    """The module of `importlib.import_module("...")`."""
    if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith("import_module"):
        return None
    first = node.args[0] if node.args else None
    return first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def folder(module: Path) -> str:
    return module.parent.as_posix()


@pytest.fixture(scope="module")
def page() -> str:
    return architecture_page.PAGE.read_text(encoding="utf-8")


def test_every_module_is_listed_with_what_it_is_for(page: str) -> None:
    assert architecture_page.renewed(page) == page, "run: python tools/architecture_page.py"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_is_for(module: Path) -> None:
    assert len(architecture_page.summary(module)) > 15


@pytest.mark.parametrize("module", [m for m in MODULES if folder(m) == "vllm_axion/serving"], ids=str)
def test_the_server_knows_of_this_package_only_itself_compat_envs_and_kernels(module: Path) -> None:
    allowed = ("serving", "compat", "envs", "kernels", "__version__")
    ours = [i.name for i in imports(module) if is_in(i.name, "vllm_axion")]
    assert [n for n in ours if not any(is_in(n, f"vllm_axion.{a}") for a in allowed)] == []


@pytest.mark.parametrize("module", [m for m in MODULES if folder(m) == "vllm_axion/kernels"], ids=str)
def test_kernels_know_nothing_of_vllm_and_of_the_rest_of_this_package(module: Path) -> None:
    names = [i.name for i in imports(module)]
    ours = [n for n in names if is_in(n, "vllm_axion")]
    assert [n for n in names if is_in(n, "vllm")] == []
    assert [n for n in ours if not is_in(n, "vllm_axion.kernels") and n != "vllm_axion._kernels"] == []


@pytest.mark.parametrize("module", [m for m in MODULES if folder(m) != "vllm_axion/serving"], ids=str)
def test_only_the_platform_and_the_command_start_the_server_and_only_when_called(module: Path) -> None:
    found = [i for i in imports(module) if is_in(i.name, "vllm_axion.serving")]
    if module.as_posix() in ("vllm_axion/platform.py", "vllm_axion/cli.py"):
        assert found
        assert [i.name for i in found if i.at_once] == []
    else:
        assert found == []


def test_the_entry_points_import_nothing_until_called() -> None:
    assert [i.name for i in imports(Path("vllm_axion/__init__.py")) if i.at_once] == []


def test_files_that_import_vllm_are_those_the_page_names(page: str) -> None:
    section = page.split("## Who imports vLLM\n", 1)[1].split("\n## ", 1)[0]
    named = {line.split("`")[1] for line in section.splitlines() if line.startswith("| `")}
    assert named == {m.relative_to("vllm_axion").as_posix() for m in MODULES if _imports_vllm(m)}


def _imports_vllm(module: Path) -> bool:
    return any(is_in(i.name, "vllm") for i in imports(module))


def test_vllm_is_imported_at_once_only_in_the_engine_process() -> None:
    found = [m.as_posix() for m in MODULES if any(i.at_once and is_in(i.name, "vllm") for i in imports(m))]
    assert found == ["vllm_axion/serving/engine_worker.py"]
