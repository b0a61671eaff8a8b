"""The documents make a site that is whole and loads nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.environment import without_coverage
from tests.support.paths import ROOT

LOADS = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}


class Loads(HTMLParser):
    """Collect the files that a browser loads for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        value = dict(attrs).get(LOADS.get(tag, ""))
        if value is not None:
            self.found.append(value)


def build(docs: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    return subprocess.run(
        [*command, str(docs), str(site)],
        env=without_coverage(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("site")
    result = build(ROOT / "docs", site)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return site


def test_every_document_is_a_page(site: Path) -> None:
    documents = {
        file.relative_to(ROOT / "docs").with_suffix(".html") for file in (ROOT / "docs").rglob("*.md")
    }
    pages = {file.relative_to(site) for file in site.rglob("*.html")}
    assert documents
    assert documents <= pages


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        assert loads.found, page
        assert not [one for one in loads.found if re.match(r"(https?:)?//", one)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", sheet.read_text()), sheet


def test_diagrams_are_drawn(site: Path) -> None:
    for document in ("architecture", "protocol"):
        diagrams = (ROOT / "docs" / f"{document}.md").read_text().count("```mermaid\n")
        assert diagrams > 0
        page = (site / f"{document}.html").read_text()
        assert page.count('src="data:image/svg+xml;base64,') == diagrams


def test_links_to_files_that_are_no_documents_are_paths(site: Path) -> None:
    page = (site / "performance.html").read_text()
    assert '<span class="pre">wsqueue/tools/bench</span>' in page
    assert "../wsqueue/tools/bench" not in page


def test_links_that_lead_nowhere_and_forgotten_documents_are_errors(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", docs)
    shutil.copytree(ROOT / "docs" / "_static", docs / "_static")
    (docs / "index.md").write_text("# Index\n\n## Explanation\n\n- [Architecture](architecture.md)\n")
    (docs / "architecture.md").write_text(
        "# Architecture\n\n[good](index.md#explanation) [1](gone.md) [2](index.md#lost) [3](#away)\n"
    )
    (docs / "forgotten.md").write_text("# Forgotten\n")
    result = build(docs, tmp_path / "site")
    assert result.returncode == 1
    found = [line.partition("WARNING: ")[2] for line in result.stderr.splitlines()]
    for problem in ("gone.md", "lost", "away", "document isn't included in any toctree"):
        assert sum(problem in line for line in found) == 1, result.stderr
    assert len(found) == 4, result.stderr
