"""How Sphinx makes a site of these documents: `make docs`.

They are plain Markdown, to be read as they are too. So what a site needs beside is made here: its navigation
is the lists of links in index.md, diagrams are drawn from their text, and a link to a file that the site
lacks becomes its path.
"""

from __future__ import annotations

import base64
import re
import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import mermaidx
from docutils import nodes
from docutils.parsers.rst import Directive

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from wsqueue.version import __version__  # noqa: E402 - of this tree, not of one that is installed

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "wsqueue"
release = __version__
html_title = f"wsqueue {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
extensions = ["myst_parser"]
myst_heading_anchors = 6
myst_fence_as_directive = ["mermaid"]
nitpicky = True
# Output of commands, and lines of commands that end in the middle, are no language that can be parsed.
suppress_warnings = ["misc.highlighting_failure"]

CONTENTS = ("index", "adr/README")
"""Documents whose links to other documents are the navigation."""

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:)([^)#\s]+)(#[^)]*)?\)")


class Mermaid(Directive):
    """Draw a diagram in the page: nothing is loaded from elsewhere."""

    has_content: ClassVar[bool] = True

    def run(self) -> list[nodes.Node]:
        """Return it as an image whose description is its text."""
        source = "\n".join(self.content)
        svg = mermaidx.render(source).svg()
        # Its own width, for an image without one is as wide as the page.
        width = re.search(r'viewBox="[-\d.]+ [-\d.]+ (\d+)', svg)
        image = base64.b64encode(svg.encode()).decode()
        html = (
            f'<img class="diagram" alt="{escape(source)}" width="{width[1] if width else ""}"'
            f' src="data:image/svg+xml;base64,{image}">'
        )
        return [nodes.raw("", html, format="html")]


def with_navigation(_app: Sphinx, name: str, source: list[str]) -> None:
    """Add the trees of contents: one for each section, with its title, of the documents that it links."""
    if name not in CONTENTS:
        return
    seen: set[str] = set()
    introduction, *sections = re.split(r"^## ", source[0], flags=re.MULTILINE)
    for section in sections or [introduction]:
        title = section.partition("\n")[0]
        links = [target for _, target, anchor in LINK.findall(section) if not anchor]
        documents = [link for link in dict.fromkeys(links) if link.endswith(".md") and link not in seen]
        documents = [link for link in documents if inside(name, link)]
        seen.update(documents)
        if documents:
            caption = f":caption: {title}\n" if not title.startswith("#") else ""
            listed = "\n".join(documents)
            source[0] += f"\n```{{toctree}}\n:hidden:\n{caption}\n{listed}\n```\n"


def without_links_to_files(_app: Sphinx, name: str, source: list[str]) -> None:
    """Write the path instead of a link to what the site lacks: anything outside of docs."""

    def path_or_link(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        if inside(name, target):
            return link[0]
        path = (DOCS / name).parent.joinpath(target).resolve().relative_to(DOCS.parent)
        return text if str(path) in text else f"{text} (`{path}`)"

    source[0] = LINK.sub(path_or_link, source[0])


def inside(name: str, target: str) -> bool:
    """Return True if the target of a link in a document is in docs."""
    return (DOCS / name).parent.joinpath(target).resolve().is_relative_to(DOCS)


def setup(app: Sphinx) -> None:
    """Extend Sphinx by what is above."""
    app.add_directive("mermaid", Mermaid)
    app.connect("source-read", without_links_to_files)
    app.connect("source-read", with_navigation)
