"""A table on a screen of any size: rich lays it out, without the columns and rows that have no room."""

from __future__ import annotations

import io
from collections.abc import Sequence

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..terminal import one_line

GAP = 2
"""Spaces between two columns."""

SHRUNK = 16
"""Cells to which a column may shrink before another one is left out: most of an address."""

CONSOLE = Console(file=io.StringIO())
"""Lays out texts and tables; nothing is written to it."""


class Column(msgspec.Struct, frozen=True):
    """Describe a column.

    Attributes:
        title: Text of its head.
        importance: If the screen is too narrow, the columns with the lowest importance are left out first.
        right: True for numbers, which are aligned to the right.
        shrinks: True if texts in it may be cut.
    """

    title: str
    importance: int
    right: bool = False
    shrinks: bool = False


class Table:
    """The rows of a table, of which as many are shown as there is room for.

    Args:
        columns: All columns.
        rows: A text for each column; "" or "-" if there is nothing to show.
        width: Cells of a line.
        noun: Plural noun for a row.
        unlisted: Number of rows that exist beside those listed.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str | Text]],
        width: int,
        noun: str,
        unlisted: int = 0,
    ) -> None:
        self._columns, self._width, self._noun, self._unlisted = columns, width, noun, unlisted
        self._rows = rows

    @property
    def height(self) -> int:
        """Return the number of lines of the whole table, 0 if it is empty."""
        return 1 + len(self._rows) + (self._unlisted > 0) if self._rows else 0

    @property
    def least(self) -> int:
        """Return the smallest number of lines that is worth showing: head, one row, and a count of others."""
        return min(self.height, 3)

    def lines(self, height: int) -> list[Text]:
        """Return the table in at most `height` lines; the last one counts the rows that are left out."""
        rows, left_out = self._rows, self._unlisted
        if self.height > height:
            rows = rows[: max(height - 2, 0)]
            left_out += len(self._rows) - len(rows)
        lines = self._render(rows)
        if left_out:
            lines.append(Text(f"… and {left_out} more {self._noun}", style="dim"))
        return lines

    def _render(self, rows: Sequence[Sequence[str | Text]]) -> list[Text]:
        cells = [[_cell(cell) for cell in row] for row in rows]
        shown = self._fitting(cells)
        table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold dim")
        for column in (self._columns[index] for index in shown):
            table.add_column(
                _cell(column.title),
                justify="right" if column.right else "left",
                no_wrap=not column.shrinks,
            )
        for row in cells:
            table.add_row(*(row[index] for index in shown))
        options = CONSOLE.options.update(width=self._width)
        lines = CONSOLE.render_lines(table, options, pad=False)
        texts = [Text.assemble(*((part.text, part.style or "") for part in line)) for line in lines]
        for text in texts:
            text.rstrip()
        return texts

    def _fitting(self, cells: Sequence[Sequence[Text]]) -> list[int]:
        """Return the columns that have something to show, and fit the width."""
        shown = [
            index
            for index in range(len(self._columns))
            if any(row[index].plain not in ("", "-") for row in cells)
        ]

        def least(index: int) -> int:
            column = self._columns[index]
            widest = max(cell_len(column.title), *(row[index].cell_len for row in cells))
            return min(widest, SHRUNK) if column.shrinks else widest

        while len(shown) > 1 and sum(least(index) + GAP for index in shown) - GAP > self._width:
            lowest = min(self._columns[index].importance for index in shown)
            shown = [index for index in shown if self._columns[index].importance > lowest] or shown[-1:]
        return shown


def _cell(value: str | Text) -> Text:
    """Return a text of one line, which is cut and not wrapped if its column is too narrow."""
    text = value if isinstance(value, Text) else Text(one_line(value))
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
