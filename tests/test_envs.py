# SPDX-License-Identifier: Apache-2.0
"""The list of environment variables, the code that reads them and the docs say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_axion import envs

_NAME = re.compile(r"VLLM_AXION_[A-Z][A-Z0-9_]*")
_NOT_SOURCE = {"build", "dist", "__pycache__", "node_modules"}


def _sources(repository: Path) -> Iterator[Path]:
    for path in repository.iterdir():
        if path.name in _NOT_SOURCE or (path.name.startswith(".") and path.name != ".ci"):
            continue
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and not _NOT_SOURCE & set(file.parts) and file.suffix not in (".so", ".pyc"):
                yield file


def _names_in(file: Path) -> set[str]:
    try:
        return set(_NAME.findall(file.read_text(encoding="utf-8")))
    except UnicodeDecodeError:
        return set()


def test_every_variable_in_the_tree_is_listed(repository: Path) -> None:
    listed = {variable.name for variable in envs.VARIABLES}
    unlisted = {
        f"{file.relative_to(repository)}: {name}"
        for file in _sources(repository)
        for name in _names_in(file) - listed
    }
    assert not unlisted


def test_every_listed_variable_is_used(repository: Path) -> None:
    read_by = {envs.CACHE.name: "envs.cache_directory("}
    here = {repository / "vllm_axion" / "envs.py", Path(__file__)}
    code = "\n".join(
        file.read_text(encoding="utf-8")
        for file in _sources(repository)
        if file not in here
        and (file.suffix in (".py", ".sh", ".cpp", ".h") or file.name in ("Makefile", "run"))
    )
    for variable in envs.VARIABLES:
        assert read_by.get(variable.name, variable.name) in code


def test_the_docs_give_each_variable_its_type_default_and_meaning(repository: Path) -> None:
    kinds = {"url": "URL", "path": "path", "text": "text"}
    lines = (repository / "docs" / "environment.md").read_text(encoding="utf-8").splitlines()
    for variable in envs.VARIABLES:
        default = f"`{variable.default}`" if variable.kind == "path" else variable.default
        cells = [f"`{variable.name}`", kinds[variable.kind], default, variable.used, variable.meaning]
        assert f"| {' | '.join(cells)} |" in lines


def test_the_cache_folder_is_absolute_and_follows_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(envs.CACHE.name, str(tmp_path))
    assert envs.cache_directory() == tmp_path
    for unset in ("", None):
        monkeypatch.delenv(envs.CACHE.name) if unset is None else monkeypatch.setenv(envs.CACHE.name, unset)
        assert envs.cache_directory() == Path.home() / ".cache" / "vllm-axion"
