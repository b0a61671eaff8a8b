"""docs/sizing.md counts with the figures of docs/performance.md and docs/configuration.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generators import sizing
from tests.support.paths import ROOT
from wsqueue.config.model import Limits

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()


def test_the_tables_are_those_that_follow_from_the_measurements() -> None:
    text = sizing.FILE.read_text()
    assert text == sizing.with_tables(text), "run python -m docs.generators.sizing, and commit what it writes"


def test_the_costs_are_read_where_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "performance.md").write_text(
        "<!-- bench:cpu -->\n\n"
        "| 1→1 | wsqueue | wsqueue, sqlite |\n| --- | --- | --- |\n| 1 KiB | 3 | 6 |\n\n"
        "| 1→100 | wsqueue | wsqueue, sqlite |\n| --- | --- | --- |\n| 1 KiB | 201 | 1,095 |\n\n"
        "| 100 × 1→10 | wsqueue | wsqueue, sqlite |\n| --- | --- | --- |\n| 1 KiB | 60 | 70 |\n\n"
    )
    monkeypatch.setattr(sizing, "DOCS", tmp_path)
    assert sizing.first("1 KiB", "sqlite") == 6
    assert sizing.further("1 KiB", "memory") == 2
    assert sizing.further("1 KiB", "sqlite") == 11
    assert sizing.further_of_many("1 KiB", "memory") == 6
    # The dearer delivery counts: 3 + 2 * 6, and 6 + 2 * 11 µs for a message.
    assert sizing.busy_cores(10_000, "1 KiB", 3, "memory") == pytest.approx(0.15)
    assert sizing.busy_cores(10_000, "1 KiB", 3, "sqlite") == pytest.approx(0.28)


def test_the_bounds_are_those_of_the_configuration() -> None:
    bounds = re.findall(r"^\| (.*?) \| (.*?) \| ([\d.]+) \|$", CONFIGURATION, re.MULTILINE)
    node = next(mib for what, _, mib in bounds if what.startswith("a node itself"))
    assert float(node) == sizing.NODE_MIB
    assert f"a v2 subscriber {sizing.SUBSCRIBER_KIB} KiB with its first topic" in CONFIGURATION
    assert f"{sizing.BOOKKEEPING_BYTES} bytes are added per message" in CONFIGURATION


def test_the_text_has_the_defaults() -> None:
    text = sizing.FILE.read_text()
    assert f"{Limits().max_connections:,} connections" in text
    assert f"{Limits().max_held_bytes // sizing.MIB} MiB" in text
