"""Imports go only downward, as docs/architecture.md draws the layers."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "wsqueue"
MODULES = {path.parent.name: sorted(path.parent.glob("*.py")) for path in PACKAGE.glob("*/__init__.py")}
MODULES |= {file.stem: [file] for file in PACKAGE.glob("[!_]*.py")}
"""The files of each module; a package is one module."""


def layers() -> list[list[str]]:
    """Return the modules of each row of the table, from the top."""
    table = (ROOT / "docs" / "architecture.md").read_text().split("\n## ", 1)[0]
    cells = re.findall(r"^\|[^|]*\| (`[^|]*) \|", table, re.MULTILINE)
    return [re.findall(r"`(\w+)`", cell) for cell in cells]


def nodes(module: str) -> Iterator[tuple[ast.AST, int]]:
    """Yield all that is in a module, with how many dots a relative import of its siblings has there."""
    for file in MODULES[module]:
        for node in ast.walk(ast.parse(file.read_text())):
            yield node, len(file.relative_to(PACKAGE).parts)


def imports(module: str, *, of_package: bool) -> set[str]:
    found = set()
    for node, siblings in nodes(module):
        if isinstance(node, ast.ImportFrom):
            if of_package and node.level == siblings:
                found.update([node.module] if node.module else [alias.name for alias in node.names])
            elif not of_package and not node.level and node.module:
                found.add(node.module)
        elif isinstance(node, ast.Import) and not of_package:
            found.update(alias.name for alias in node.names)
    return found


def test_every_module_has_its_layer() -> None:
    assert sorted(module for layer in layers() for module in layer) == sorted(MODULES)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_go_downward(module: str) -> None:
    levels = {name: level for level, layer in enumerate(layers()) for name in layer}
    upward = {name for name in imports(module, of_package=True) if levels[name] < levels[module]}
    assert not upward


@pytest.mark.parametrize("module", ["producer", "consumer", "client"])
def test_nodes_do_not_know_each_other(module: str) -> None:
    assert not imports(module, of_package=True) & {"producer", "consumer", "client"}


@pytest.mark.parametrize("module", ["session", "framing", "hello", "packets", "topics", "routing"])
def test_the_protocol_has_no_input_output(module: str) -> None:
    assert not imports(module, of_package=False) & {
        "asyncio",
        "socket",
        "time",
        "uvloop",
        "select",
        "threading",
    }
    assert not any(isinstance(node, ast.Await | ast.AsyncFunctionDef) for node, _ in nodes(module))
