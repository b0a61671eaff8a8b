"""Parts of the documents, which tests compare with the code and with each other."""

from __future__ import annotations

import re
from pathlib import Path

from .paths import ROOT

NO_PROSE = re.compile(r"^```.*?^```$|^\|.*?$", re.MULTILINE | re.DOTALL)


def rows(document: str, heading: str) -> list[list[str]]:
    """Return the body of the first table after a heading."""
    text = (ROOT / document).read_text().split(f"# {heading}\n", 1)[1]
    table = re.search(r"^\|.*\|$(?:\n^\|.*\|$)+", text, re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def code_blocks(document: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def without_code(document: str) -> str:
    """Return a document with empty lines instead of its code blocks and tables."""
    return NO_PROSE.sub(lambda found: "\n" * found[0].count("\n"), document)
