# SPDX-License-Identifier: Apache-2.0
"""Renews the list of modules in `docs/architecture.md` from the first sentence of each module's docstring.

Run `python tools/architecture_page.py` after adding, removing or renaming a module; a test fails until then.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules: begin -->", "<!-- modules: end -->"


def modules() -> list[Path]:
    """Every module of the package, relative to the root, packages' own files first."""
    found = [path.relative_to(ROOT) for path in (ROOT / "vllm_axion").rglob("*.py")]
    return sorted(found, key=lambda path: (path.parent.as_posix(), path.name != "__init__.py", path.name))


def summary(module: Path) -> str:
    """The first sentence of a module's docstring, with a question's answer, on one line; empty if there is
    none.
    """
    text = ast.get_docstring(ast.parse((ROOT / module).read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    # A question is answered by the sentence after it.
    sentence = re.match(r".+?\?(?=\s).+?[.](?=\s|$)|.+?[.](?=\s|$)", paragraph)
    return (sentence[0] if sentence else paragraph).replace("|", "\\|")


def listing() -> str:
    """The Markdown: a table for each folder."""
    parts = []
    for folder in dict.fromkeys(module.parent for module in modules()):
        rows = [f"| `{module.name}` | {summary(module)} |" for module in modules() if module.parent == folder]
        parts.append(
            "\n".join([f"### `{folder.as_posix()}/`", "", "| module | what |", "| --- | --- |", *rows])
        )
    return "\n\n".join(parts)


def renewed(page: str) -> str:
    """The page with the list between its markers replaced."""
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n\n{listing()}\n\n{END}{rest.split(END, 1)[1]}"


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
