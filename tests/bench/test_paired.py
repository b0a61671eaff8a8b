"""Comparing two checkouts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import paired


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, list[str]]]:
    """Return a measured time: this checkout takes a tenth more than the other, and more each time."""
    runs: list[tuple[Path, list[str]]] = []

    def measure(tree: Path, options: list[str]) -> float:
        runs.append((tree, options))
        return (10.0 + len(runs) // 2) * (1.1 if tree == paired.HERE else 1.0)

    monkeypatch.setattr(paired, "measure", measure)
    return runs


def test_the_checkouts_take_turns(measured: list[tuple[Path, list[str]]], tmp_path: Path) -> None:
    cells = paired.row(tmp_path, "--batch 1", 4).split(" | ")
    assert [tree for tree, _ in measured] == [paired.HERE, tmp_path, tmp_path, paired.HERE] * 2
    assert all(options == ["--batch", "1"] for _, options in measured)
    assert cells[0] == "| `--batch 1`"
    assert 1.0 < float(cells[3]) < 1.2


def test_the_command(measured: list[tuple[Path, list[str]]], tmp_path: Path) -> None:
    done = CliRunner().invoke(paired.main, [str(tmp_path), "--runs", "2", "--", "--size", "1024"])
    assert done.exit_code == 0
    assert [line.split(" | ")[0] for line in done.output.splitlines()] == [
        "| options",
        "|---|---|---|---|---|",
        "| `--size 1024`",
    ]
    assert len(measured) == 4


def test_it_runs_the_bench_of_a_checkout() -> None:
    assert paired.measure(paired.HERE, ["--count", "1000", "--warm-up", "0"]) >= 0
