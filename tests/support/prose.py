"""The prose of the project: comments, docstrings and help texts of its Python, and its documents."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .documents import without_code

CODE = re.compile(r"``[^`]*``|`[^`]*`|\b\w+: ", re.ASCII)
"""Names of code, and the name of an argument before its description."""

ADDRESS = re.compile(r"`[^`\n]*`|\]\([^)]*\)")
"""Code, and the address of a link."""


class Text(NamedTuple):
    """A comment, a docstring, a help text or a paragraph."""

    line: int
    text: str


def of_python(source: str) -> Iterator[Text]:
    """Yield each comment, docstring and help text."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield Text(node.lineno, CODE.sub("", text))
            case ast.keyword(arg="help" | "epilog" | "short_help", value=ast.Constant(value=str(text))):
                yield Text(node.value.lineno, CODE.sub("", text))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Text(token.start[0], CODE.sub("", token.string.lstrip("#! ")))


def of_document(source: str) -> Iterator[Text]:
    """Yield each paragraph of a document in Markdown, without code, tables and addresses."""
    text = without_code(source)
    for paragraph in re.finditer(r"(?:^.*\S.*$\n?)+", text, re.MULTILINE):
        yield Text(text.count("\n", 0, paragraph.start()) + 1, ADDRESS.sub("", paragraph[0]))


@functools.cache
def prose(file: Path) -> list[Text]:
    """Return the prose of a file in Python or Markdown."""
    source = file.read_text()
    return list(of_document(source) if file.suffix == ".md" else of_python(source))
