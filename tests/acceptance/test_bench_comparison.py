"""The comparison runs and writes results, tables and plots."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from bench.results import COMMON, MANY, REPLAY, Results
from bench.systems import SYSTEMS, check_installed
from tests.support.paths import ROOT
from wsqueue.errors import WsqueueError

from ..support.commands import check_no_traceback
from ..support.environment import without_coverage


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    # The nodes' speed counts without coverage, and `bench` is not in it anyway.
    done = subprocess.run(
        [sys.executable, "-m", "bench.compare", *map(str, arguments)],
        cwd=ROOT,
        env=without_coverage(),
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    check_no_traceback(done.stderr)
    return done


def is_installed(system: str) -> bool:
    try:
        check_installed([system])
    except WsqueueError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_quick_comparison(tmp_path: Path) -> None:
    wanted = ["wsqueue/*", "reference/1-1"]
    # One workload of each other is enough to see that other systems are in the tables.
    wanted += [name for name in ("nats/1-1", "redis/1-1") if is_installed(name.split("/")[0])]
    stored = "wsqueue-sqlite/stored"
    only = [word for pattern in (*wanted, stored) for word in ("--only", pattern)]
    done = compare("--quick", *only, "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = Results.read(tmp_path / "results.json")
    assert {(figure.lost, figure.failed) for figure in results.figures} == {(0, 0)}
    for pattern in (*wanted, stored):
        system, workload = pattern.split("/")
        figures = [figure for figure in results.figures if figure.system == system]
        assert workload in ("*", *(figure.workload for figure in figures))
        # The reference is too slow for the common rate, and few messages take less than a clock tick.
        measured = [figure for figure in figures if figure.workload not in {COMMON, REPLAY, *MANY}]
        assert all(figure.cpu or figure.idle_bytes for figure in measured)

    text = (tmp_path / "performance.md").read_text()
    sections = dict(re.findall(r"<!-- bench:(\w+) -->\n\n(.*?)\n\n<!-- /bench:\1 -->", text, re.DOTALL))
    assert "Not measured." not in sections.values()
    titles = [SYSTEMS[pattern.split("/")[0]].title for pattern in wanted]
    for title in titles:
        assert title in sections["cpu"]
        assert f"\n| {title} | " in sections["nodes"]
    assert "\n| wsqueue, sqlite | " in sections["stored"]
    assert "\n| wsqueue | " in sections["many"]
    assert sections["goals"].count("reached") + sections["goals"].count("missed") >= 2
    for name in re.findall(r"\]\(performance/(\w+\.svg)\)", text):
        file = tmp_path / "performance" / name
        assert ET.parse(file).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        assert file.stat().st_size < 100_000

    # The text outside of the markers stays when it is done again.
    document = tmp_path / "performance.md"
    document.write_text(f"# By hand\n\n{text}\nThe end.\n")
    done = compare("--tables", "--output", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert document.read_text() == f"# By hand\n\n{text}\nThe end.\n"


def test_a_pattern_that_matches_nothing() -> None:
    done = compare("--only", "kafka/*")
    assert done.returncode == 2
    assert f"'kafka/*' matches none; systems: {', '.join(SYSTEMS)};" in done.stderr


def test_there_are_no_results_yet(tmp_path: Path) -> None:
    done = compare("--tables", "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"Error: {tmp_path}/results.json: No such file or directory\n"
