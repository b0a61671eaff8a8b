"""Plain English in comments, docstrings, help texts and documents, and lines that fit a window."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ...support.documents import without_code
from ...support.paths import ROOT
from ...support.prose import prose

WORD = re.compile(r"[\w'-]+")
WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
AVOIDED = re.compile(r"\A(?:Of|Tell whether)\b|\b(?i:lest|likewise|mend(?:s|ed|ing)?|so many)\b")
"""Say instead: a whole sentence, "Return True if ...", so that, also, fix, n."""

WORDS_PER_WHAT = 500
"""Number of words for which one `what` is allowed: most of them begin a clause that lacks its noun."""

WIDTH, WIDTHS = 120, {"README.md": 100, "CONTRIBUTING.md": 100}
"""Columns of a document."""


def files(folder: str) -> list[Path]:
    """Return the files with prose in a folder; the pages of docs/reference are made of docstrings."""
    found = ROOT.glob("*.md") if folder == "." else (ROOT / folder).rglob("*")
    references = ROOT / "docs" / "reference"
    return sorted(
        file
        for file in found
        if file.suffix in {".py", ".md"} and file.parent != references and not file.is_symlink()
    )


def places(file: Path, pattern: re.Pattern[str]) -> list[str]:
    """Return `file:line: word` of each match in a file."""
    return [
        f"{file.relative_to(ROOT)}:{text.line + text.text.count(chr(10), 0, found.start())}: {found[0]}"
        for text in prose(file)
        for found in pattern.finditer(text.text)
    ]


@pytest.mark.parametrize("folder", ["wsqueue", "tests", "bench", "docs", "ansible", "."])
def test_plain_english(folder: str) -> None:
    words = sum(len(WORD.findall(text.text)) for file in files(folder) for text in prose(file))
    avoided = [place for file in files(folder) for place in places(file, AVOIDED)]
    assert not avoided, "\n".join(avoided)
    whats = [place for file in files(folder) for place in places(file, WHAT)]
    assert len(whats) <= words // WORDS_PER_WHAT, "\n".join([f"{words} words", *whats])


def test_lines_of_documents_fit_a_window() -> None:
    wide = []
    for file in [
        file for folder in ("docs", "ansible", ".") for file in files(folder) if file.suffix == ".md"
    ]:
        width = WIDTHS.get(str(file.relative_to(ROOT)), WIDTH)
        for number, line in enumerate(without_code(file.read_text()).splitlines(), 1):
            if len(line) > width and " " in line:
                wide.append(f"{file.relative_to(ROOT)}:{number}: {len(line)} columns")
    assert not wide, "\n".join(wide)
