"""The folders of the package are layers: read from the tree and its imports."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

PACKAGE = ROOT / "wsqueue"
FOLDERS = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in PACKAGE.rglob("*.py")
}
EVERYBODYS = {"errors", "journal", "version"}
"""Modules beside the folders, which each folder may import; they import no folder."""

INPUT_OUTPUT = {"asyncio", "logging", "os", "select", "socket", "ssl", "threading", "time", "uvloop"}


def imports(module: str) -> Iterator[str]:
    """Yield the absolute names of the modules that a module imports, wherever in it."""
    file = MODULES[module]
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield name if name in MODULES else source


def folder(module: str) -> str:
    """Return the folder of a module of wsqueue, or the name of a module beside the folders."""
    return module.split(".")[1] if "." in module else ""


def imported_folders(name: str) -> set[str]:
    """Return all that the modules of a folder, or a module beside the folders, import of wsqueue."""
    found = {
        folder(source)
        for module in MODULES
        if folder(module) == name
        for source in imports(module)
        if source.partition(".")[0] == "wsqueue"
    }
    return found - {name}


def documented(name: str) -> set[str]:
    """Return the folders that the docstring of a folder says it may import."""
    docstring = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text()))
    assert docstring is not None
    (sentence,) = re.findall(r"^May import: (.*)\.$", docstring, re.MULTILINE)
    words = set(re.findall(r"\w+", sentence))
    return words if words <= set(FOLDERS) else set()


def modules_of(name: str) -> dict[str, set[str]]:
    """Return the modules of a folder, each with those of the same folder that it imports."""
    inside = [module for module in MODULES if folder(module) == name]
    return {module: set(imports(module)) & set(inside) - {module} for module in inside}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_imports_only_the_folders_that_it_names(name: str) -> None:
    assert imported_folders(name) <= documented(name) | EVERYBODYS


def test_folders_import_only_downward() -> None:
    graphlib.TopologicalSorter({name: documented(name) for name in FOLDERS}).prepare()


@pytest.mark.parametrize("name", FOLDERS)
def test_no_circle_within_a_folder(name: str) -> None:
    graphlib.TopologicalSorter(modules_of(name)).prepare()


@pytest.mark.parametrize("name", sorted(EVERYBODYS))
def test_what_everybody_imports_is_below_all_folders(name: str) -> None:
    assert imported_folders(name) <= EVERYBODYS


def test_few_modules_lie_beside_the_folders() -> None:
    beside = {file.stem for file in PACKAGE.glob("*.py")}
    assert beside == EVERYBODYS | {"__init__", "__main__"}


@pytest.mark.parametrize("module", ["producer", "consumer"])
def test_nodes_do_not_know_each_other(module: str) -> None:
    found = set(imports(f"wsqueue.nodes.{module}"))
    assert not found & {"wsqueue.nodes.producer", "wsqueue.nodes.consumer"}


@pytest.mark.parametrize(
    "module",
    [
        *(module for module in MODULES if folder(module) == "protocol"),
        "wsqueue.nodes.link_queue",
        "wsqueue.client.failover",
    ],
)
def test_the_core_has_no_input_output_and_no_clock(module: str) -> None:
    assert not {name.partition(".")[0] for name in imports(module)} & INPUT_OUTPUT
    tree = ast.parse(MODULES[module].read_text())
    assert not any(isinstance(node, ast.Await | ast.AsyncFunctionDef) for node in ast.walk(tree))


def test_the_picture_in_the_documents_is_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    lines = text.split("```mermaid\nflowchart TB\n", 1)[1].split("```", 1)[0].splitlines()
    arrows = {
        name: set(below.split(" & "))
        for name, _, below in (line.strip().partition(" --> ") for line in lines)
    }

    def below(name: str) -> set[str]:
        return {found for to in arrows.get(name, ()) for found in {to, *below(to)}}

    assert {name: below(name) for name in FOLDERS} == {name: documented(name) for name in FOLDERS}
