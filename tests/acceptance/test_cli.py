"""The command line: help, configuration, keys, and errors as one sentence with an exit code."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

import wsqueue
from wsqueue.log.records import StoreState
from wsqueue.log.snapshot import SNAPSHOT_NAME, write_snapshot

from ..support.commands import Result, run, running
from ..support.config_files import SECRET, config_with_key
from ..support.ports import free_port
from ..support.processes import Cluster, command
from ..support.toml import write_toml

pytestmark = pytest.mark.timeout(120)

COMMANDS = (
    *(
        "consumer",
        "producer",
        "check-config",
        "kept",
        "demo",
        "publish",
        "subscribe",
        "work",
        "verify",
        "local",
        "bench",
    ),
    *("topics", "groups", "purge", "disconnect"),
    *("top", "doctor", "backup", "restore", "completion", "man"),
)
CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:0"]\n'
PRODUCER = 'role = "producer"\nlisten = ["127.0.0.1:0"]\nconsumers = ["192.0.2.7:10001/producer"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:1/produce"]\nconsumers = ["127.0.0.1:2/subscribe"]\n'


def demo_file(directory: Path, cluster: Cluster, secret: str | None) -> Path:
    """Write a client's configuration with a key of its own, or none."""
    file, psk = directory / "demo.toml", directory / "psk"
    settings: dict[str, object] = {
        "role": "demo",
        "producers": [f"{node.address}/produce" for node in cluster.producers],
        "consumers": [f"{node.address}/subscribe" for node in cluster.consumers],
    }
    if secret is not None:
        psk.touch(mode=0o600)
        psk.write_text(secret)
        settings["psk_file"] = "psk"
    write_toml(file, settings)
    return file


def assert_refused(result: Result, code: int, *parts: str) -> None:
    """Check an error: the exit code, nothing on standard output, one sentence on standard error."""
    assert result.code == code, result
    assert result.stdout == ""
    assert result.error.startswith("Error: ")
    for part in parts:
        assert part in result.error


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_lists_the_commands_and_an_example_and_there_is_a_version(option: str) -> None:
    code, stdout, stderr = run(option)
    assert (code, stderr) == (0, "")
    assert all(re.search(rf"^  {name} +\S", stdout, re.MULTILINE) for name in COMMANDS)
    assert re.search("^ +wsqueue local --demo news$", stdout, re.MULTILINE)
    assert "\\b" not in stdout
    version = {"--help": "--version", "-h": "-V"}[option]
    assert run(version) == (0, f"wsqueue {wsqueue.__version__}\n", "")


def test_a_port_in_use_is_an_error(standing_cluster: Cluster, tmp_path: Path) -> None:
    taken = standing_cluster.consumers[0].address
    file = config_with_key(tmp_path, CONSUMER.replace("127.0.0.1:0", taken))
    result = run("consumer", file)
    assert_refused(result, 1, f"cannot listen on {taken}: ")
    assert "address already in use" in result.error.lower()


def test_a_key_is_needed(tmp_path: Path) -> None:
    node = config_with_key(tmp_path, CONSUMER, secret=None)
    assert_refused(run("consumer", node), 3, "no pre-shared key: expected psk_file in the configuration")
    client = config_with_key(tmp_path, DEMO, secret=None)
    assert_refused(run("publish", "news", "x", "--config", client), 3, "no pre-shared key")


CLIENTS = pytest.mark.parametrize(
    "arguments",
    [
        ["publish", "news", "hello"],
        ["subscribe", "news"],
        ["work", "news", "true", "--group=g"],
        ["demo", "news"],
        ["bench"],
        ["topics"],
        ["groups"],
        ["groups", "--forget", "news", "g"],
        ["purge", "--yes", "news"],
        ["disconnect", "192.0.2.7"],
    ],
)


@CLIENTS
def test_no_node_answers(tmp_path: Path, arguments: list[str]) -> None:
    ports = free_port(), free_port()
    text = DEMO.replace(":1/", f":{ports[0]}/").replace(":2/", f":{ports[1]}/")
    result = run(*arguments, "--config", config_with_key(tmp_path, text))
    assert_refused(result, 4, "Connection refused")
    assert any(f"127.0.0.1:{port}/" in result.error for port in ports)


@CLIENTS
def test_the_nodes_have_another_key(standing_cluster: Cluster, tmp_path: Path, arguments: list[str]) -> None:
    file = demo_file(tmp_path, standing_cluster, "another key")
    result = run(*arguments, "--config", file)
    assert_refused(result, 5, "wrong answer: the pre-shared keys differ")
    assert "another key" not in result.stderr


def test_the_nodes_that_are_checked_have_another_key(standing_cluster: Cluster, tmp_path: Path) -> None:
    config = f"--config={demo_file(tmp_path, standing_cluster, 'another key')}"
    for arguments, code, text, count in (
        (["verify"], 1, "the pre-shared keys differ", 8),
        (["top", "--once", "--interval", "0.5"], 5, "does not answer: it has another pre-shared key.", 4),
        (["doctor"], 1, "The pre-shared key differs there: ours has the fingerprint ", 4),
    ):
        result = run(*arguments, config)
        assert (result.code, result.stderr) == (code, "")
        assert result.stdout.count(text) == count, result.stdout
        assert "another key" not in result.stdout
    assert "`wsqueue doctor FILE`" in result.stdout


def test_without_an_option_the_configuration_is_that_of_the_environment(
    standing_cluster: Cluster, tmp_path: Path
) -> None:
    here = {"WSQUEUE_CONFIG": str(standing_cluster.demo_file)}
    assert run("publish", "news", "hello", env=here) == (0, "", "")
    nowhere = tmp_path / "none.toml"
    assert_refused(run("publish", "news", "x", env={"WSQUEUE_CONFIG": str(nowhere)}), 3, str(nowhere))
    option = ["--config", str(standing_cluster.demo_file)]
    assert run("publish", "news", "hello", *option, env={"WSQUEUE_CONFIG": str(nowhere)}).code == 0


@pytest.mark.skipif(Path("/etc/wsqueue/demo.toml").exists(), reason="this machine has a deployed cluster")
def test_without_any_the_configuration_is_that_of_the_deployment() -> None:
    assert_refused(run("publish", "news", "hello"), 3, "/etc/wsqueue/demo.toml: cannot read it: ")


def test_a_key_in_the_environment_works_with_a_warning(standing_cluster: Cluster, tmp_path: Path) -> None:
    file = demo_file(tmp_path, standing_cluster, secret=None)
    env = {"WSQUEUE_PSK": standing_cluster.secret}
    code, stdout, stderr = run("publish", "news", "hello", "--config", file, env=env)
    assert (code, stdout) == (0, "")
    assert "WARNING PSK taken from the environment" in stderr
    assert standing_cluster.secret not in stderr
    default = run("publish", "news", "x", "--config", file, env={"WSQUEUE_PSK": "pre-shared-key"})
    assert default.code == 3
    assert default.stderr.splitlines()[-1].startswith("Error: WSQUEUE_PSK: ")


def test_a_node_takes_the_key_of_its_systemd_credential(tmp_path: Path) -> None:
    node = config_with_key(tmp_path, CONSUMER, secret=None)
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "psk").write_text(SECRET)
    (credentials / "psk").chmod(0o400)
    with running(tmp_path, "consumer", node, env={"CREDENTIALS_DIRECTORY": str(credentials)}) as consumer:
        consumer.wait_for("started role=consumer")
    assert "PSK" not in consumer.stderr


def test_the_key_is_not_on_a_command_line_nor_in_an_output(standing_cluster: Cluster, tmp_path: Path) -> None:
    demo = standing_cluster.demo_file
    outputs = [
        run("-v", "publish", "news", "hello", "--config", demo),
        run("-v", "verify", "--config", demo),
        run("-v", "verify", "--config", demo_file(tmp_path, standing_cluster, "another key")),
    ]
    for node in standing_cluster.nodes:
        outputs.append(run("check-config", node.file))
        outputs.append(Result(0, node.log, Path(f"/proc/{node.pid}/cmdline").read_text()))
    for output in outputs:
        for secret in (standing_cluster.secret, "another key"):
            assert secret not in output.stdout + output.stderr


def test_kept_messages_and_orphans_are_counted(tmp_path: Path) -> None:
    write_snapshot(tmp_path / SNAPSHOT_NAME, StoreState(epochs=[], topics={}, numbers={}), [])
    assert run("kept", tmp_path) == (0, "0 messages of 0 topics\n", "")
    counted = run("kept", "--json", "--number", "2", "--of", "3", tmp_path)
    assert json.loads(counted.stdout) == {"topics": 0, "messages": 0}
    for wrong in (["--number", "4", "--of", "3"], ["--number", "1"], ["--of", "1"]):
        result = run("kept", *wrong, tmp_path)
        assert (result.code, "expected --number N and --of COUNT together" in result.stderr) == (2, True)
    (tmp_path / SNAPSHOT_NAME).unlink()
    assert_refused(run("kept", tmp_path), 1, str(tmp_path), "there is no file of messages")


def test_verify_leaves_out_a_node_that_is_known_to_be_down(standing_cluster: Cluster) -> None:
    demo = standing_cluster.demo_file
    down, up = (node.address for node in standing_cluster.consumers[:2])
    shown = json.loads(run("verify", "--json", "--without", down, "--config", demo).stdout)
    names = " ".join(check["name"] for check in shown["checks"])
    assert (shown["failed"], down in names, up in names) == (0, False, True)
    for wrong, words in (("192.0.2.1:1", "is no node of the configuration"), ("x", "is not an address")):
        result = run("verify", "--without", wrong, "--config", demo)
        assert (result.code, words in result.stderr) == (2, True)


def test_values_are_checked_without_the_files_that_they_name(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('psk_file = "nowhere"\n' + CONSUMER)
    assert_refused(run("check-config", file), 3, "nowhere")
    assert run("check-config", "--values-only", file).code == 0
    file.write_text('psk_file = "nowhere"\nmax = 1\n' + CONSUMER)
    assert_refused(run("check-config", "--values-only", file), 3, "node.toml:2: max: unknown key")


def test_no_command_needs_a_home_or_a_locale(standing_cluster: Cluster) -> None:
    env = {"LC_ALL": "C", "LANG": "C", "HOME": "/nonexistent"}
    arguments = ("publish", "日本", "ñ😀", "--config", standing_cluster.demo_file)
    assert run(*arguments, env=env) == (0, "", "")
    assert os.access(command()[0], os.X_OK)
