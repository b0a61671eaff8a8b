"""`bench`: short runs on clusters of its own and on others, their reports, and their end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from wsqueue.tools.bench.plot import plot_problem
from wsqueue.tools.bench.workload import Load

from ..support.commands import Running, Terminal, is_alive, kill_all, run, running
from ..support.processes import Cluster
from ..support.toml import write_toml
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

SHORT = ("--warm-up", "0.1", "--duration", "0.2")


def report_of(*arguments: str | Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run `bench --json`, and return its report."""
    result = run("bench", "--json", *arguments, env=env)
    assert (result.code, result.stderr) == (0, ""), result
    (line,) = result.stdout.splitlines()
    report: dict[str, Any] = json.loads(line)
    return report


@contextmanager
def long_bench(directory: Path) -> Iterator[tuple[Running, dict[str, int]]]:
    """Run a bench that would take a minute; yield it and its processes by name once all have started."""
    with running(directory, "bench", "--duration", "60") as bench:
        found: dict[str, int] = {}

        def started() -> bool:
            for pid in bench.children():
                # The last argument is the configuration of a node, or the kind of a worker.
                name = Path(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2:][0]).stem
                # A process that was just forked has the arguments of its parent.
                if name in ("consumer-1", "producer-1", "publishers", "subscribers"):
                    found[name] = pid
            return len(found) == 4

        try:
            wait_until(started, "two nodes and two workers run")
            yield bench, found
        finally:
            kill_all([pid for pid in found.values() if is_alive(pid)])


def wait_all_ended(pids: dict[str, int]) -> None:
    wait_until(lambda: not any(map(is_alive, pids.values())), "all processes end")


def test_flat_out_as_a_table_and_a_plot(tmp_path: Path) -> None:
    # The environment names no cluster to flood.
    env = {"WSQUEUE_CONFIG": str(tmp_path / "none.toml"), "MPLCONFIGDIR": str(tmp_path)}
    code, stdout, stderr = run("bench", *SHORT, "--plot", tmp_path / "plot.PNG", env=env)
    assert (code, stderr) == (0, "")
    assert (tmp_path / "plot.PNG").read_bytes().startswith(b"\x89PNG")
    lines = stdout.splitlines()
    assert lines[0] == "1 publisher, 1 topic, 1 subscriber, 100 bytes, as fast as possible"
    sent = re.search(r"^sent +([\d,]+) +[\d,]+/s  in \d\.\d\d s$", stdout, re.MULTILINE)
    assert sent is not None
    assert re.search(rf"^delivered +{sent[1]} +[\d,]+/s$", stdout, re.MULTILINE)
    assert re.search(r"^lost +0\nduplicates +0\nunconfirmed +0$", stdout, re.MULTILINE)
    assert "latency: needs --rate" in stdout
    for node in ("consumer-1", "producer-1"):
        assert re.search(rf"^{node} +[\d.]+ s +[\d.]+ µs +[\d.]+ MiB +[\d.]+ MiB$", stdout, re.MULTILINE)
    assert re.search(r"^load generator +[\d.]+ µs$", stdout, re.MULTILINE)


def test_a_rate_as_json_and_a_plot(tmp_path: Path) -> None:
    env = {"MPLCONFIGDIR": str(tmp_path)}
    report = report_of("--rate", "500", *SHORT, "--plot", tmp_path / "plot.svg", env=env)
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
    assert report["load"] == msgspec.to_builtins(Load(rate=500, duration=0.2, warm_up=0.1))
    assert (report["protocol"], report["unconfirmed"]) == ("v2", 0)
    # On a machine that pauses, the last messages are not sent in time.
    assert 0 < report["sent"] == report["received"] <= 100
    assert (report["lost"], report["duplicates"], report["ended_early"]) == (0, 0, False)
    assert report["messages_per_second"] == pytest.approx(report["sent"] / report["seconds"])
    latency = report["latency"]
    assert latency["samples"] == report["sent"] == sum(count for _, count in latency["histogram"])
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99_9"] <= latency["max"]
    assert latency["max"] < report["seconds"] * 1e6
    assert set(report["nodes"]) == {"consumer-1", "producer-1"}
    for node in report["nodes"].values():
        assert 10e6 < node["rss_bytes"] <= node["max_rss_bytes"] < 1e9
        assert node["cpu_us_per_message"] == pytest.approx(node["cpu_seconds"] * 1e6 / report["sent"])


def test_other_loads_with_an_exact_count(standing_cluster: Cluster) -> None:
    config = ("--config", standing_cluster.demo_file)
    report = report_of(
        *config, "--protocol", "classic", "--count", "1000", "--publishers", "2", "--topics", "3"
    )
    assert (report["protocol"], report["sent"], report["received"]) == ("classic", 1000, 1000)
    assert (report["lost"], report["unconfirmed"]) == (0, 0)
    report = report_of(*config, "--size", "200000", "--rate", "100", "--count", "31", "--warm-up", "0.1")
    assert (report["sent"], report["received"], report["lost"]) == (31, 31, 0)
    assert report["seconds"] >= 0.3
    assert report["latency"]["samples"] == 31


def test_several_of_everything_and_an_exact_count() -> None:
    report = report_of(
        *("--consumers", "2", "--producers", "2", "--publishers", "3", "--topics", "5"),
        *("--subscribers", "4", "--size", "16", "--count", "30011", "--warm-up", "0"),
    )
    assert (report["sent"], report["received"], report["lost"]) == (30_011, 4 * 30_011, 0)
    assert report["latency"] is None
    assert set(report["nodes"]) == {"consumer-1", "consumer-2", "producer-1", "producer-2"}
    assert all(node["cpu_seconds"] >= 0 for node in report["nodes"].values())


@pytest.mark.parametrize("retention", ["memory", "sqlite", "jetstream"])
def test_a_replay(retention: str) -> None:
    load = ("--topics", "3", "--subscribers", "2", "--batch", "7", "--count", "5000")
    report = report_of("--replay", "--retention", retention, *load)
    found = (report["sent"], report["received"], report["lost"], report["duplicates"], report["unconfirmed"])
    assert found == (5000, 10_000, 0, 0, 0)
    assert report["messages_per_second"] == pytest.approx(5000 / report["seconds"])


def test_a_replay_begins_where_the_run_began(standing_cluster: Cluster) -> None:
    config = ("--config", standing_cluster.demo_file)
    assert run("publish", *config, "bench-0000", "from another client").code == 0
    code, stdout, stderr = run("bench", *config, "--replay", "--count", "100")
    assert (code, stderr) == (0, "")
    assert re.search(r"^read +100 ", stdout, re.MULTILINE)


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert plot_problem(tmp_path / "plot.svg") == "a plot needs matplotlib: pip install 'wsqueue[plot]'"


def test_the_progress_is_for_terminals(standing_cluster: Cluster) -> None:
    with Terminal("bench", *SHORT, "--rate", "1000", "--config", standing_cluster.demo_file) as terminal:
        assert terminal.end() == 0
    for text in (b"100%", b"delivered", b"CPU and memory of the nodes are not known"):
        assert text in terminal.screen


def test_what_is_lost_is_said(cluster: Cluster, standing_cluster: Cluster, tmp_path: Path) -> None:
    # Two runs at once, because each waits for 5 seconds. In the first one, subscribers are at the wrong
    # consumers, because the order differs from that of the producers.
    settings = {
        "role": "demo",
        "producers": [f"{node.address}/produce" for node in standing_cluster.producers],
        "consumers": [f"{node.address}/subscribe" for node in reversed(standing_cluster.consumers)],
        "psk_file": str(standing_cluster.psk_file),
    }
    write_toml(tmp_path / "reversed.toml", settings)
    ten = ("--config", tmp_path / "reversed.toml", "--count", "10", "--warm-up", "0")
    # In the second one, a node stops in the middle.
    cluster.start(1, 1)
    (consumer,) = cluster.consumers
    long = ("--config", cluster.demo_file, "--duration", "60", "--warm-up", "0")
    with running(tmp_path, "bench", "--json", *ten) as unheard, running(tmp_path, "bench", *long) as stopped:
        wait_until(lambda: consumer.counters()["deliveries"], "messages are delivered")
        consumer.signal(signal.SIGSTOP)
        workers = stopped.children()
        assert (unheard.end(), stopped.end()) == (1, 1)
        assert not any(map(is_alive, workers))
    # Otherwise the producer would wait for it when it ends.
    consumer.signal(signal.SIGCONT)
    report = json.loads(unheard.stdout)
    assert (report["sent"], report["received"], report["lost"]) == (10, 0, 10)
    assert (report["duplicates"], report["ended_early"]) == (0, False)
    assert unheard.stderr == "10 deliveries were lost.\n"
    rows = re.findall(r"^(?:sent|delivered|lost) +([\d,]+)", stopped.stdout, re.MULTILINE)
    sent, delivered, lost = (int(number.replace(",", "")) for number in rows)
    assert lost == sent - delivered > 0
    (unconfirmed,) = re.findall(r"^unconfirmed +([\d,]+)", stopped.stdout, re.MULTILINE)
    assert f"{lost} deliveries were lost." in stopped.stderr
    assert f"{unconfirmed.replace(',', '')} messages were not confirmed." in stopped.stderr
    assert "ended early" in stopped.stderr


def test_what_comes_twice_is_said(standing_cluster: Cluster, tmp_path: Path) -> None:
    config = ("--config", standing_cluster.demo_file)
    load = ("--rate", "100", "--count", "800", "--warm-up", "0")
    with running(tmp_path, "bench", "--json", *config, *load) as bench:
        while bench.process.poll() is None:
            assert run("publish", *config, "--", "bench-0000", Load().filler.decode()).code == 0
        assert bench.end() == 1
    report = json.loads(bench.stdout)
    assert (report["sent"], report["lost"]) == (800, 0)
    assert report["duplicates"] > 0
    assert bench.stderr == f"{report['duplicates']} deliveries were duplicates.\n"


def test_connections_that_are_silent_for_long_stay(cluster: Cluster) -> None:
    cluster.start(1, 1, ping_interval_seconds=0.2, ping_timeout_seconds=0.2)
    options = ("--publishers", "3", "--rate", "2", "--count", "3", "--warm-up", "0")
    report = report_of("--config", cluster.demo_file, *options)
    assert (report["sent"], report["received"], report["lost"]) == (3, 3, 0)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("consumer-1", "consumer-1 ended during the run"),
        ("producer-1", "producer-1 ended during the run"),
        ("publishers", "the process of the publishers ended: it was killed"),
    ],
)
def test_a_process_that_dies_ends_the_run(tmp_path: Path, name: str, error: str) -> None:
    with long_bench(tmp_path) as (bench, pids):
        os.kill(pids[name], signal.SIGKILL)
        assert bench.end() == 1
        wait_all_ended(pids)
    assert bench.stderr.splitlines()[-1] == f"Error: {error}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_nothing_stays_when_it_is_told_to_end(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with long_bench(tmp_path) as (bench, pids):
        assert bench.end(number) == code
        wait_all_ended(pids)
    assert bench.stdout == ""


def test_the_workers_end_with_it_even_when_it_is_killed(tmp_path: Path) -> None:
    with long_bench(tmp_path) as (bench, pids):
        bench.end(signal.SIGKILL)
        wait_all_ended({name: pids[name] for name in ("publishers", "subscribers")})
