"""`top`, `doctor`, `completion`, `man`, and output for scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import wsqueue
from wsqueue.cli.common import ExitCode
from wsqueue.cli.main import main

from ..support.certificates import Authority
from ..support.commands import Terminal, run, running
from ..support.ports import free_port
from ..support.processes import Cluster, clean_environment, command
from ..support.toml import write_toml
from ..support.waiting import wait_until

pytestmark = pytest.mark.timeout(120)

FINGERPRINT = re.compile(r"\b[0-9a-f]{8}\b")


def config(cluster: Cluster) -> str:
    return f"--config={cluster.demo_file}"


class TestTop:
    def test_once(self, standing_cluster: Cluster) -> None:
        code, stdout, stderr = run("top", "--once", "--interval", "0.5", config(standing_cluster))
        assert (code, stderr) == (0, "")
        first, second, *lines = stdout.splitlines()
        assert first.startswith("wsqueue top  4 of 4 nodes answer, ")
        assert second.startswith("Published 0 messages/s, delivered 0 messages/s")
        for node in standing_cluster.nodes:
            assert sum(line.startswith(f"{node.role}  {node.address} ") for line in lines) == 1
        assert sum(bool(re.search(r"  up  ", line)) for line in lines) == 4
        assert "\x1b" not in stdout

    def test_once_as_json_has_rates(self, standing_cluster: Cluster, tmp_path: Path) -> None:
        with running(tmp_path, "publish", "busy", config(standing_cluster)) as publisher:
            stop = threading.Event()

            def publish() -> None:
                while not stop.wait(0.01):
                    publisher.type("hello\n")

            thread = threading.Thread(target=publish)
            thread.start()
            try:
                result = run("top", "--once", "--json", "--interval", "1", config(standing_cluster))
            finally:
                stop.set()
                thread.join()
            assert publisher.end() == 0
        assert (result.code, result.stderr) == (0, "")
        (line,) = result.stdout.splitlines()
        snapshot = json.loads(line)
        assert snapshot["consumers"] == [node.address for node in standing_cluster.consumers]
        assert snapshot["producers"] == [node.address for node in standing_cluster.producers]
        nodes = snapshot["nodes"]
        assert [node["address"] for node in nodes] == snapshot["consumers"] + snapshot["producers"]
        assert all(node["report"]["version"] == wsqueue.__version__ for node in nodes)
        for role in ("consumer", "producer"):
            assert max(node["rates"]["messages_in"] for node in nodes if node["role"] == role) > 0
        assert "busy" in [topic["topic"] for topic in snapshot["top_topics"]]

    def test_it_goes_on_in_a_pipe(self, standing_cluster: Cluster, tmp_path: Path) -> None:
        with running(tmp_path, "top", "--interval", "0.5", config(standing_cluster)) as top:
            top.wait_for("^wsqueue top  4 of 4", 2)
            assert top.end(signal.SIGTERM) == 143
        assert "\x1b" not in top.stdout
        with running(tmp_path, "top", "--json", "--interval", "0.5", config(standing_cluster)) as top:
            top.wait_for(r"^\{.*\}$", 3)
            assert top.end(signal.SIGINT) == 130
            times = [json.loads(line)["time"] for line in top.stdout.splitlines()]
        assert times == sorted(set(times))
        assert top.stderr == ""

    def test_a_node_that_hangs_does_not_hang_it(self, cluster: Cluster) -> None:
        cluster.start(1, 1)
        cluster.producers[0].signal(signal.SIGSTOP)
        code, stdout, _ = run("top", "--once", "--interval", "0.5", config(cluster))
        assert code == 1
        address = cluster.producers[0].address
        assert re.search(rf"producer {address} does not answer: .*too long", stdout), stdout

    @pytest.mark.parametrize(("key", "code"), [("q", 0), ("Q", 0), ("", 130)])
    def test_on_a_terminal(self, standing_cluster: Cluster, key: str, code: int) -> None:
        with Terminal("top", "--interval", "0.5", config(standing_cluster)) as terminal:
            before = terminal.attributes
            terminal.wait_for("4 of 4 nodes answer", 2)
            assert b"\x1b[?1049h" in terminal.screen  # the other screen,
            assert b"\x1b[?25l" in terminal.screen  # without a cursor
            assert not terminal.echoes
            if key:
                terminal.type(key)
            else:
                terminal.process.send_signal(signal.SIGINT)
            assert terminal.end() == code
            assert terminal.screen.rstrip().endswith((b"\x1b[?1049l", b"\x1b[?25h"))
            assert terminal.screen.count(b"\x1b[?25h") >= 1
            assert terminal.attributes == before

    def test_it_follows_the_size_of_the_terminal(self, standing_cluster: Cluster) -> None:
        environment = {"COLUMNS": "80", "LINES": "24"}
        with Terminal("top", "--interval", "3600", config(standing_cluster), env=environment) as terminal:
            terminal.wait_for("4 of 4 nodes answer")
            terminal.resize(140, 30)

            def first_line() -> str:
                terminal.read()
                first, *_ = terminal.screen.rpartition(b"\x1b[H")[2].partition(b"\r\n")
                return re.sub(rb"\x1b\[[0-9;]*m", b"", first).decode()

            wait_until(lambda: len(first_line()) == 140, "it is as wide as the terminal")
            assert first_line().endswith("q ends")
            terminal.type("q")
            assert terminal.end() == 0

    def test_it_can_be_suspended(self, standing_cluster: Cluster) -> None:
        with Terminal("top", "--interval", "0.5", config(standing_cluster)) as terminal:
            terminal.wait_for("4 of 4 nodes answer")
            terminal.process.send_signal(signal.SIGTSTP)
            terminal.wait_for("\x1b[?1049l")
            stat = Path(f"/proc/{terminal.process.pid}/stat")
            wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it stops")
            assert terminal.echoes
            terminal.process.send_signal(signal.SIGCONT)
            terminal.wait_for("\x1b[?1049h", 2)
            terminal.type("q")
            assert terminal.end() == 0


def test_a_dead_node(cluster: Cluster, tmp_path: Path) -> None:
    """Each command that looks at a cluster names the node, and the producers that miss it."""
    cluster.start(2, 2)
    dead, report = cluster.consumers[1].address, tmp_path / "report.xml"
    cluster.consumers[1].kill()
    for producer in cluster.producers:
        producer.wait_logged("link down")

    result = run("verify", config(cluster), "--junit", report)
    assert (result.code, result.stderr) == (1, "")
    *checks, summary = result.stdout.splitlines()
    failed = [line for line in checks if line.startswith("FAIL ")]
    assert (len(failed), summary) == (5, "14 checks, 5 failed")
    assert all(dead in line and "Connection refused" in line for line in failed)
    suite = ET.fromstring(report.read_bytes())
    assert suite.get("failures") == str(len(suite.findall("testcase/failure"))) == "5"

    result = run("doctor", config(cluster))
    assert (result.code, result.stderr) == (1, "")
    assert f"FAIL consumer {dead}: It does not answer: Connection refused." in result.stdout
    for producer in cluster.producers:
        assert f"FAIL producer {producer.address}: No link to consumer {dead}" in result.stdout
    assert result.stdout.splitlines()[-1].endswith(", 3 problems, 0 warnings")

    top = ("top", "--once", "--interval", "0.5", config(cluster))
    code, stdout, stderr = run(*top)
    assert (code, stderr) == (1, "")
    assert stdout.startswith("wsqueue top  3 of 4 nodes answer, 3 warnings ")
    assert f"! consumer {dead} does not answer: Connection refused." in stdout
    assert f"No link to consumer {dead}" in stdout
    result = run(*top, "--json")
    assert result.code == 1
    problems = [node["problem"] for node in json.loads(result.stdout)["nodes"]]
    assert problems == ["", "Connection refused", "", ""]

    for node in [*cluster.producers, cluster.consumers[0]]:
        node.kill()
    code, stdout, stderr = run(*top)
    assert (code, stderr) == (4, "")
    assert "No node answers." in stdout
    result = run("verify", "--json", config(cluster))
    checked = json.loads(result.stdout)
    assert checked["failed"] == sum(bool(check["problem"]) for check in checked["checks"]) > 0


class TestDoctorOfACluster:
    def test_that_is_well(self, standing_cluster: Cluster) -> None:
        result = run("doctor", config(standing_cluster))
        assert (result.code, result.stderr) == (0, ""), result.stdout
        *lines, summary = result.stdout.splitlines()
        assert summary == f"{len(lines)} checks, 0 problems, 0 warnings", result.stdout
        assert all(line.startswith("ok   ") for line in lines)
        for node in standing_cluster.nodes:
            answer = f"ok   {node.role} {node.address}: It answers: version {wsqueue.__version__},"
            assert answer in result.stdout
        assert len(set(FINGERPRINT.findall(result.stdout))) == 1
        assert standing_cluster.secret not in result.stdout
        as_json = run("doctor", "--json", config(standing_cluster))
        assert (as_json.code, as_json.stderr) == (0, "")
        found = json.loads(as_json.stdout)
        assert (found["problems"], found["warnings"]) == (0, 0)
        assert all(
            f" {finding['subject']}: " in line for finding, line in zip(found["findings"], lines, strict=True)
        )
        assert set(found["findings"][0]) == {"state", "subject", "text", "advice"}

    def test_of_strangers_and_with_consumers_in_another_order(
        self, standing_cluster: Cluster, tmp_path: Path
    ) -> None:
        file = tmp_path / "demo.toml"
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.listen()
            silent = f"127.0.0.1:{stranger.getsockname()[1]}"
            settings = {
                "role": "demo",
                "producers": [f"{silent}/produce", f"{standing_cluster.producers[0].address}/produce"],
                "consumers": [f"{node.address}/subscribe" for node in reversed(standing_cluster.consumers)],
                "psk_file": str(standing_cluster.psk_file),
            }
            write_toml(file, settings, {"hello_seconds": 1.0})
            result = run("doctor", "--config", file)
        assert result.code == 1
        assert "FAIL consumers: The order differs: consumer 1 of producer " in result.stdout
        assert f"FAIL producer {silent}: It does not answer: " in result.stdout


def test_doctor_of_a_certificate_that_has_expired(cluster: Cluster) -> None:
    tls = Authority(cluster.directory).issue("node", days=-1.0)
    node = cluster.add_consumer(**{"tls.certificate": tls.certificate, "tls.key": tls.key, "tls.ca": tls.ca})
    node.settings["listen"] = [f"wss://{node.address}"]
    node.start()
    settings = {
        "role": "demo",
        "producers": [f"wss://127.0.0.1:{free_port()}/produce"],
        "consumers": [f"wss://{node.address}/subscribe"],
        "psk_file": "psk",
        "tls.ca": tls.ca,
    }
    write_toml(cluster.demo_file, settings)
    result = run("doctor", config(cluster))
    assert result.code == 1
    for text in (
        "It does not answer: its certificate is not to be trusted: certificate has expired.",
        "The certificate that it shows has expired on ",
    ):
        assert f"FAIL consumer wss://{node.address}: {text}" in result.stdout


class TestDoctorOfFiles:
    def test_of_nodes_that_run(self, standing_cluster: Cluster) -> None:
        files = [node.file for node in standing_cluster.nodes]
        result = run("doctor", *files)
        assert (result.code, result.stderr) == (0, ""), result.stdout
        for node in standing_cluster.nodes:
            assert (
                f"ok   {node.file}: The node (process {node.pid}) listens at {node.address}." in result.stdout
            )
            assert f"{node.file}: The node (process {node.pid}) may have " in result.stdout
        assert result.stdout.count("The pre-shared key has the fingerprint ") == 4
        assert standing_cluster.secret not in result.stdout

    def test_of_a_node_whose_port_another_has(self, standing_cluster: Cluster, tmp_path: Path) -> None:
        taken = standing_cluster.consumers[0]
        file = tmp_path / "node.toml"
        shutil.copy(standing_cluster.psk_file, tmp_path / "psk")
        write_toml(file, taken.settings)
        result = run("doctor", file)
        assert result.code == 1
        assert f"FAIL {file}: Process {taken.pid} (" in result.stdout
        assert f"listens at {taken.address}, and not a node with this file." in result.stdout

    def test_that_are_wrong(self, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        file.write_text('role = "consumer"\n')
        result = run("doctor", "--json", file)
        assert (result.code, result.stderr) == (1, "")
        (finding,) = json.loads(result.stdout)["findings"]
        assert (finding["state"], finding["subject"]) == ("problem", str(file))
        # As with all commands, a wrong --config has an exit code of its own.
        assert run("doctor", "--config", tmp_path / "none.toml").code == 3


def test_what_is_checked_is_said_on_terminals_only(standing_cluster: Cluster) -> None:
    expected = {"doctor": b"asking 2 consumers and 2 producers", "verify": b"comes back through"}
    for name, text in expected.items():
        with Terminal(name, config(standing_cluster)) as terminal:
            assert terminal.end() == 0
        assert b"\r\x1b[K" in terminal.screen
        assert re.search(rb"\r\x1b\[K[^\r\n]*" + text, terminal.screen)


@pytest.mark.parametrize("arguments", [["top", "--once", "--interval", "0.5"], ["doctor"], ["verify"]])
def test_colours_are_for_terminals_that_want_them(standing_cluster: Cluster, arguments: list[str]) -> None:
    command = [*arguments, config(standing_cluster)]
    assert "\x1b" not in "".join(map(str, run(*command)))
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with Terminal(*command, env=environment) as terminal:
            assert terminal.end() == 0
        assert (re.search(rb"\x1b\[(?:\d+;)*3\dm", terminal.screen) is not None) == coloured


def test_check_config_as_json(standing_cluster: Cluster, tmp_path: Path) -> None:
    good = standing_cluster.producers[0].file
    result = run("check-config", "--json", good)
    assert (result.code, result.stderr) == (0, "")
    found = json.loads(result.stdout)
    assert found.pop("memory_bytes") > 512 * 1024 * 1024
    assert found == {
        "file": str(good), "role": "producer", "warnings": [], "problem": None, "at": None,
    }  # fmt: skip
    bad = tmp_path / "bad.toml"
    bad.write_text('role = "consumer"\nlisten = ["127.0.0.1:0"]\nlissten = 1\n')
    result = run("check-config", "--json", bad)
    assert (result.code, result.stderr) == (3, "")
    found = json.loads(result.stdout)
    assert found["problem"] == f"{bad}:3: lissten: unknown key: did you mean listen?"
    assert found["at"] == {"file": str(bad), "line": 3, "key": "lissten"}


class TestCompletion:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Return a directory with the command `wsqueue`, and the script of each shell."""
        executable = tmp_path / "wsqueue"
        executable.write_text(f'#!/bin/sh\nexec {" ".join(command())} "$@"\n')
        executable.chmod(0o755)
        for name in ("bash", "zsh", "fish"):
            code, script, stderr = run("completion", name)
            assert (code, stderr) == (0, "")
            assert "_WSQUEUE_COMPLETE" in script
            (tmp_path / f"script.{name}").write_text(script)
        return tmp_path

    def complete(self, directory: Path, script: str) -> list[str]:
        done = subprocess.run(
            ["bash", "-c", script],
            env=clean_environment(PATH=f"{directory}:{os.environ['PATH']}"),
            capture_output=True,
            check=True,
            timeout=30,
        )
        return done.stdout.decode().split()

    @pytest.mark.parametrize(
        ("words", "completed"),
        [
            (("do",), ["doctor"]),
            (("top", "--o"), ["--once"]),
            (("completion", "f"), ["fish"]),
            (("local", "--retention", ""), ["memory", "sqlite", "jetstream"]),
        ],
    )
    def test_in_bash(self, directory: Path, words: tuple[str, ...], completed: list[str]) -> None:
        line = " ".join(repr(word) for word in ("wsqueue", *words))
        script = (
            f"source {directory}/script.bash; COMP_WORDS=({line}); COMP_CWORD={len(words)};"
            ' _wsqueue_completion wsqueue; echo "${COMPREPLY[@]}"'
        )
        assert self.complete(directory, script) == completed

    @pytest.mark.parametrize("words", ["top --config", "consumer", "doctor", "check-config"])
    def test_of_files_is_the_shells(self, directory: Path, words: str) -> None:
        count = len(words.split()) + 1
        script = f"COMP_WORDS='wsqueue {words} /e' COMP_CWORD={count} _WSQUEUE_COMPLETE=bash_complete wsqueue"
        assert self.complete(directory, script) == ["file,/e"]

    @pytest.mark.parametrize("name", ["zsh", "fish"])
    def test_the_scripts_of_others_are_well_formed(self, directory: Path, name: str) -> None:
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name}")
        subprocess.run([name, "-n", directory / f"script.{name}"], check=True, timeout=30)


@pytest.fixture(scope="module")
def page() -> str:
    """Return the manual page."""
    code, page, stderr = run("man")
    assert (code, stderr) == (0, "")
    return page


class TestManual:
    def test_it_has_all_commands_options_and_exit_codes(self, page: str) -> None:
        for heading in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "COMMANDS", "EXIT STATUS", "FILES"):
            assert f"\n.SH {heading}\n" in page
        for name in main.commands:
            assert f'\n.SS "wsqueue {name}"\n'.replace("check-", "check\\-") in page
            for option in set(re.findall(r"--[a-z-]+", run(name, "--help").stdout)) - {"--help"}:
                assert option.replace("-", "\\-") in page
        for code in ExitCode:
            assert f"\n.TP\n.B {code}\n" in page
        assert f'"wsqueue {wsqueue.__version__}"' in page

    def test_nothing_in_it_is_taken_for_a_request(self, page: str) -> None:
        requests = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
        assert requests == {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".nf", ".fi"}
        assert "\b" not in page

    @pytest.mark.skipif(shutil.which("groff") is None, reason="there is no groff")
    def test_groff_has_nothing_to_say_about_it(self, page: str) -> None:
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Kutf8", "-Tutf8"], input=page.encode(), capture_output=True, check=True
        )
        assert done.stderr == b""
        text = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout.decode())
        assert "wsqueue subscribe --from earliest --no-follow news" in text
        # Quotes in commands can be copied.
        assert "wsqueue publish news 'hello there'" in text

    @pytest.mark.skipif(shutil.which("mandoc") is None, reason="there is no mandoc")
    def test_mandoc_has_nothing_to_say_about_it(self, page: str) -> None:
        done = subprocess.run(["mandoc", "-Tlint"], input=page.encode(), capture_output=True, check=False)
        # The page has no date, so that the same source always gives the same page.
        assert [line for line in done.stdout.decode().splitlines() if "missing date" not in line] == []
