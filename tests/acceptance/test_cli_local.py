"""`verify` of a cluster, and `local`, which runs one."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from ..support.commands import Running, Terminal, is_alive, kill_all, run, running, shell
from ..support.processes import Cluster
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

NODE_LINE = re.compile(r"(consumer|producer)-\d+ +\| \S+Z (INFO|WARNING|ERROR) .+")
CHECK_LINE = re.compile(r"(ok  |FAIL) .+ \(\d+ ms\)")


def test_verify_a_cluster_that_works(standing_cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    result = run("verify", "--config", standing_cluster.demo_file, "--junit", report)
    assert (result.code, result.stderr) == (0, "")
    *checks, summary = result.stdout.splitlines()
    assert all(CHECK_LINE.fullmatch(line) for line in checks)
    # Two consumers and two producers answer, four ways work, and six endpoints refuse a wrong key.
    assert summary == "14 checks, 0 failed"
    suite = ET.fromstring(report.read_bytes())
    assert (suite.get("tests"), suite.get("failures")) == ("14", "0")
    assert [case.get("name") for case in suite] == [line[5:].rpartition(" (")[0] for line in checks]


def test_verify_with_a_report_that_cannot_be_written(standing_cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "none" / "report.xml"
    result = run("verify", "--config", standing_cluster.demo_file, "--junit", report)
    assert result.code == 1
    assert result.error == f"Error: cannot write {report}: No such file or directory"


@contextmanager
def local_cluster(directory: Path, *arguments: str) -> Iterator[tuple[Running, list[int]]]:
    """Run `local`; yield it and the ids of its nodes once the cluster is up."""
    with running(directory, "local", "--port", "0", *arguments) as local:
        nodes: list[int] = []
        try:
            local.wait_for("The cluster is up")
            nodes = local.children()
            assert len(nodes) == 4
            yield local, nodes
        finally:
            kill_all([pid for pid in nodes if is_alive(pid)])


def test_local_runs_a_cluster_until_ctrl_c(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with local_cluster(tmp_path, "--directory", str(kept)) as (local, nodes):
        config = f"--config={kept}/demo.toml"
        local.wait_for(rf"^  wsqueue demo --config {re.escape(str(kept))}/demo\.toml news$")
        assert run("demo", config, "news", stdin=b"hello\n") == (0, "hello\n", "")
        (page,) = re.findall(r"^Status page, .*: (http://127\.0\.0\.1:\d+/)$", local.stdout, re.MULTILINE)
        check_status_page(page)
        for pid in nodes:
            arguments = Path(f"/proc/{pid}/cmdline").read_text()
            assert (kept / "psk").read_text() not in arguments
        assert local.end(signal.SIGINT) == 130
        assert not [pid for pid in nodes if is_alive(pid)]
    with (kept / "consumer-1.toml").open("a") as file:
        file.write('[[retention.topics]]\nmatch = "state/*"\nmax_messages_per_topic = 1\n')
    assert run("check-config", kept / "consumer-1.toml").code == 0
    assert all(NODE_LINE.fullmatch(line) for line in local.stderr.splitlines())
    for name in ("consumer-1", "consumer-2", "producer-1", "producer-2"):
        assert re.search(rf"^{name} +\| \S+ INFO started role={name[:8]} ", local.stderr, re.MULTILINE)
        assert re.search(rf"^{name} +\| \S+ INFO stopped ", local.stderr, re.MULTILINE)
        assert run("check-config", kept / f"{name}.toml").code == 0
    assert (kept / "psk").stat().st_mode & 0o777 == 0o600
    assert (kept / "psk").read_text() not in local.stdout + local.stderr
    assert "\x1b" not in local.stdout + local.stderr


def check_status_page(page: str) -> None:
    """Check that a page is there, and that its node knows all others."""
    address = page.removeprefix("http://").removesuffix("/")

    def answer(path: str) -> bytes:
        with contextlib.closing(http.client.HTTPConnection(address)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read()

    def cluster() -> dict[str, Any]:
        return dict(json.loads(answer("/cluster.json")))

    assert b"<title>" in answer("/")

    # The nodes learn of each other after all have started.
    wait_until(
        lambda: [node["report"] is not None for node in cluster()["nodes"]] == [True] * 4, "all have answered"
    )
    found = cluster()
    assert [node["role"] for node in found["nodes"]] == ["consumer"] * 2 + ["producer"] * 2
    assert len(found["consumers"]) == len(found["producers"]) == 2
    assert found["producers"][1] == address
    # A busy machine may provoke other warnings, such as `loop_lag`.
    wrong = {"keys_differ", "version_differs", "link_down", "messages_lost", "hello_refused"}
    assert not wrong.intersection(warning["code"] for warning in found["warnings"])


def test_local_ends_its_nodes_when_it_is_told_to_end(tmp_path: Path) -> None:
    with local_cluster(tmp_path) as (local, nodes):
        (directory,) = re.findall(r"--config (\S+)/demo.toml", local.stdout)
        assert Path(directory, "psk").exists()
        assert local.end(signal.SIGTERM) == 143
        assert not [pid for pid in nodes if is_alive(pid)]
        assert not Path(directory).exists()


def test_local_leaves_nothing_behind_after_an_impatient_ctrl_c(tmp_path: Path) -> None:
    with local_cluster(tmp_path) as (local, nodes):
        # Users press Ctrl-C again if a node takes long to end.
        os.kill(node_id(nodes, "producer-1"), signal.SIGSTOP)
        local.process.send_signal(signal.SIGINT)
        local.wait_for(r"^producer-2 +\| \S+ INFO draining")
        assert local.end(signal.SIGINT) == 130
        assert not [pid for pid in nodes if is_alive(pid)]


def node_id(nodes: list[int], name: str) -> int:
    (pid,) = (pid for pid in nodes if f"/{name}.toml" in Path(f"/proc/{pid}/cmdline").read_text())
    return pid


def test_local_ends_when_a_node_dies(tmp_path: Path) -> None:
    with local_cluster(tmp_path) as (local, nodes):
        os.kill(node_id(nodes, "producer-2"), signal.SIGKILL)
        assert local.end() == 1
        assert local.stderr.splitlines()[-1] == "Error: producer-2 ended: killed by SIGKILL"
        assert not [pid for pid in nodes if is_alive(pid)]


def test_local_says_why_a_node_does_not_start(standing_cluster: Cluster) -> None:
    port = standing_cluster.consumers[0].port
    code, stdout, stderr = run("local", "--port", str(port))
    assert (code, stdout) == (1, "")
    *lines, last = stderr.splitlines()
    (cause,) = (line for line in lines if "Error: " in line)
    assert cause.startswith(f"consumer-1 | Error: cannot listen on 127.0.0.1:{port}: ")
    assert "address already in use" in cause.lower()
    assert last == "Error: consumer-1 did not start: exit status 1"


def test_local_says_why_its_directory_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("local", "--port", "0", "--directory", tmp_path / "file" / "kept")
    assert result.code == 1
    assert "Not a directory" in result.error


def test_local_demo_verifies_and_publishes_standard_input_twice(tmp_path: Path) -> None:
    numbers = ["--consumers", "3", "--producers", "1", "--port", "0", "--directory", f"{tmp_path}/kept"]
    for _ in range(2):
        code, stdout, stderr = run("local", *numbers, "--demo", "news", stdin=b"hello there\nand again\n")
        assert (code, stderr) == (0, "")
        *checks, summary, first, second = stdout.splitlines()
        assert all(line.startswith("ok  ") for line in checks)
        # Four answer, three ways work, and one and twice three endpoints refuse a wrong key.
        assert [summary, first, second] == ["14 checks, 0 failed", "hello there", "and again"]


def test_local_demo_on_a_terminal_has_a_status_page() -> None:
    with Terminal("local", "--port", "0", "--demo", "news") as terminal:
        terminal.wait_for("Status page of the cluster, until this command ends: http://127.0.0.1:")
        (page,) = re.findall(r"http://127\.0\.0\.1:\d+/", terminal.screen.decode())
        check_status_page(page)
        assert terminal.end("\x04") == 0


def test_local_demo_into_a_pipe_that_closes() -> None:
    result = shell("seq 10000 | $wsqueue local --port 0 --demo news | head -n 20")
    assert result.stdout.splitlines()[-6:] == ["14 checks, 0 failed", "1", "2", "3", "4", "5"]
    assert result.stderr == ""


def test_local_that_was_stopped_ends_when_its_terminal_hangs_up(tmp_path: Path) -> None:
    with local_cluster(tmp_path) as (local, nodes):
        local.process.send_signal(signal.SIGSTOP)
        local.process.send_signal(signal.SIGHUP)
        local.process.send_signal(signal.SIGCONT)
        assert local.end() == 129
        wait_until(lambda: not any(map(is_alive, nodes)), "the nodes end")


def test_local_with_one_log_for_all_consumers(tmp_path: Path) -> None:
    """The log is in the directory, and survives the consumers and the server."""
    arguments = "local", "--port", "0", "--directory", tmp_path / "kept", "--retention", "jetstream"
    config = f"--config={tmp_path}/kept/demo.toml"
    for published in (["one"], ["two", "three"]):
        with running(tmp_path, *map(str, arguments)) as local:
            try:
                local.wait_for("The cluster is up")
                nodes = local.children()
                assert len(nodes) == 5
                for data in published:
                    assert run("publish", config, "news", data).code == 0
                everything = run("subscribe", config, "--from", "earliest", "--no-follow", "news")
            finally:
                local.end(signal.SIGINT)
                kill_all([pid for pid in nodes if is_alive(pid)])
    assert everything == (0, "one\ntwo\nthree\n", "")


def test_local_without_the_program_of_the_log(tmp_path: Path) -> None:
    result = run("local", "--retention", "jetstream", "--nats-server", tmp_path / "none")
    assert result == (1, "", f"Error: {tmp_path}/none: there is no such program\n")
    result = run("local", "--nats-server", tmp_path / "none")
    assert result.code == 2
    assert result.stderr.endswith("Error: --nats-server is only for --retention jetstream.\n")
