"""Some schedules of the fault suite, always the same: `make test-faults` runs many more."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tests.faults import __main__ as suite
from tests.faults import schedule
from tests.faults.cluster import LoopbackCluster
from tests.faults.harness import Worker, run
from tests.faults.schedule import Fault, Retention, Schedule, Workload
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]
pytestmark += [pytest.mark.usefixtures("uncovered")]

SCHEDULES = 4
GOOD = re.compile(
    r"^\d+ schedules with \d+ faults, 0 bad: .* lost 0, duplicated 0, unexpected 0, out of order 0,",
    re.MULTILINE,
)


def one_kill(retention: Retention) -> Schedule:
    """Return a schedule that ends the only consumer under load."""
    workload = Workload(
        consumers=1,
        producers=1,
        subscriptions=[["news"]],
        topics=["news"],
        publishers=1,
        rate=100,
        window=8,
        sizes=[40],
        seconds=2,
    )
    return Schedule(0, retention, workload, [Fault(1.0, 0.2, "kill", "consumer-1")])


OF_EACH = ["--seed", "5", "--schedules", str(SCHEDULES)]

WITH_GROUPS = ["--seed", "1", "--schedules", str(SCHEDULES), "--groups"]

OF_A_SHARED_LOG = [
    *["--seed", "451", "--schedules", "2", "--retention", "jetstream", "--seconds", "6", "--groups"]
]
"""Two schedules with nearly all faults that only a shared log has."""


@pytest.mark.parametrize(
    "wanted", [OF_EACH, WITH_GROUPS, OF_A_SHARED_LOG], ids=["both", "groups", "jetstream"]
)
def test_what_is_promised_is_kept(tmp_path: Path, wanted: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults", *wanted, "--directory", str(tmp_path / "kept")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr
    assert GOOD.search(result.stdout), result.stdout
    assert not (tmp_path / "kept").exists()


class ForgetfulCluster(LoopbackCluster):
    """Lose the disk of a consumer that is killed: which `sqlite` must not lose, and the suite must see."""

    async def apply(self, fault: Fault) -> None:
        """Do it, and remove its log."""
        node = self.nodes[fault.target]
        node.wanted.clear()
        await node.kill()
        kept = self.directory / f"{fault.target}.retention"
        shutil.rmtree(kept)
        kept.mkdir()
        node.wanted.set()


def test_a_loss_is_seen_and_kept_for_a_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = tmp_path / "schedule.json"
    one_kill("sqlite").write(wanted)
    monkeypatch.setattr(suite, "LoopbackCluster", ForgetfulCluster)
    monkeypatch.setattr("tests.faults.harness.PATIENCE_SECONDS", 2.0)
    arguments = ["--replay", str(wanted), "--directory", str(tmp_path / "kept")]
    result = CliRunner().invoke(suite.main, arguments)
    assert result.exit_code == 1, result.output
    assert "\n1 schedules with 1 faults, 1 bad: " in result.output
    match = re.search(r"^  replay: python -m tests.faults --replay (\S+)$", result.output, re.MULTILINE)
    assert match is not None
    assert schedule.read(Path(match[1])) == one_kill("sqlite")
    again = CliRunner().invoke(suite.main, arguments)
    assert again.exit_code == 2, again.output
    assert "is there, from another run: expected another --directory" in again.output
    kept = {file.name for file in Path(match[1]).parent.iterdir()}
    assert {"consumer-1.log", "producer-1.log", "publisher-1.1.jsonl", "subscriber-1.1.jsonl"} <= kept


@pytest.mark.anyio
async def test_a_log_that_is_put_back_from_a_backup_is_announced(tmp_path: Path) -> None:
    one = one_kill("sqlite")
    faults = [Fault(0.1, 0.0, "backup", "consumer-1"), Fault(1.5, 0.2, "restore", "consumer-1")]
    one = msgspec.structs.replace(one, faults=faults)
    cluster = LoopbackCluster(one, tmp_path)
    outcome = await run(one, cluster, tmp_path)
    assert outcome.good
    assert len(cluster.restores["consumer-1"]) == outcome.verdict.gaps == 1


@pytest.mark.anyio
async def test_a_memory_consumer_that_is_killed_announces_a_gap(tmp_path: Path) -> None:
    one = one_kill("memory")
    outcome = await run(one, LoopbackCluster(one, tmp_path), tmp_path)
    assert outcome.good
    assert outcome.verdict.gaps == 1


@pytest.mark.anyio
async def test_a_worker_whose_kills_overlap_is_one_process(tmp_path: Path) -> None:
    worker = Worker(one_kill("memory"), "subscriber-1", tmp_path / "client.toml", tmp_path)
    await worker.start()
    await asyncio.gather(worker.restart(0.2), worker.restart(0.0))
    assert worker.lives == 3
    await worker.kill()
    assert not await asyncio.to_thread(processes_with, str(tmp_path))


def processes_with(argument: str) -> list[str]:
    """Return the command lines that have an argument that begins so."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_text().replace("\0", " "))
        except OSError:
            continue  # It has ended.
    return [line for line in lines if f" {argument}" in line]
