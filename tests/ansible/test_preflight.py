"""Playbooks and the preflight, without a host."""

from __future__ import annotations

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

from ..support import control_node
from ..support.keys import psk_of

PLAYBOOKS = sorted((ROOT / "ansible" / "playbooks").glob("*.yml"))

CHECK = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.import_role: {name: wsqueue_producer}
      when: false
    - ansible.builtin.import_role: {name: wsqueue_node, tasks_from: check}
      vars: {wsqueue_node_kind: producer}
    - ansible.builtin.debug: {msg: "found {{ wsqueue_node_problems }}"}
"""

UNREACHABLE = """
- hosts: all
  gather_facts: false
  SERIAL
  any_errors_fatal: true
  max_fail_percentage: 0
  pre_tasks:
    - ansible.builtin.import_role: {name: wsqueue, tasks_from: complete}
  tasks:
    - ansible.builtin.command: echo
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.debug: {msg: the next play}
"""

WEAK = """
- hosts: localhost
  gather_facts: false
  vars:
    clients: {a: {key: GOOD}, b: {key: secret}, c: {key: [OTHER]}}
    host: {psk: [GOOD], node_psk: [OTHER, an old secret], clients: "{{ clients }}"}
  tasks:
    - ansible.builtin.debug: {msg: "found {{ [host, host] | wsqueue.wsqueue.weak_keys }}"}
"""

LOCAL = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}


def inventory(directory: Path, hosts: dict[str, Any], **variables: Any) -> Path:
    file = directory / "hosts.yml"
    groups = {"consumers": {"hosts": hosts}, "producers": {"hosts": hosts}}
    file.write_text(json.dumps({"all": {"children": groups, "vars": variables}}))
    return file


@pytest.mark.parametrize("file", PLAYBOOKS, ids=lambda file: str(file.stem))
def test_each_play_ends_the_run_when_a_host_fails_or_is_lost(file: Path) -> None:
    for play in yaml.safe_load(file.read_text()):
        # Plays that remove things, back them up or look at hosts for support go on with the other hosts.
        if (
            "hosts" not in play
            or play["hosts"] == "localhost"
            or any(word in play["name"] for word in ("Remove", "Back up", "Gather"))
        ):
            continue
        if "Look for" not in play["name"]:
            assert (play.get("any_errors_fatal"), play.get("max_fail_percentage")) == (True, 0), play["name"]
        # Later runs of site.yml go host by host.
        if "serial" in play:
            assert "complete" in str(play["pre_tasks"]), play["name"]


@pytest.mark.slow
@pytest.mark.parametrize("serial", ["serial: 1", 'serial: [1, "100%"]', "order: inventory"])
def test_no_task_runs_after_a_host_could_not_be_reached(tmp_path: Path, serial: str) -> None:
    hosts = {"a": LOCAL, "b": {"ansible_host": "127.0.0.1", "ansible_port": 1}, "c": LOCAL, "d": LOCAL}
    playbook = tmp_path / "play.yml"
    playbook.write_text(UNREACHABLE.replace("SERIAL", serial))
    result = control_node.try_to_run("ansible-playbook", "-i", inventory(tmp_path, hosts), playbook)
    assert result.returncode != 0
    _, _, after = result.stdout.partition("fatal: [b]: UNREACHABLE!")
    assert after, result.stdout
    # Other hosts of its batch may end the task that they have begun.
    _, _, after = after.partition("\nTASK ")
    assert "changed: [" not in after
    assert "the next play" not in result.stdout
    if serial == "serial: 1":
        assert "b failed, or could not be reached, so this host stays as it is" in " ".join(after.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "problem"),
    [({}, "found []"), ({"max_held_bytes": -1}, "limits.max_held_bytes"), ({"no_such": 1}, "limits.no_such")],
)
def test_configurations_are_checked_before_they_are_written(
    tmp_path: Path, limits: dict[str, int], problem: str
) -> None:
    variables = {
        "wsqueue_psk": psk_of("everybody"),
        "wsqueue_plain": True,
        "wsqueue_producer_limits": limits,
        "wsqueue_release_staged": f"{ROOT}:{sysconfig.get_path('purelib')}",
    }
    playbook = tmp_path / "check.yml"
    playbook.write_text(CHECK)
    hosts = inventory(tmp_path, {"h1": LOCAL}, **variables)
    output = control_node.run("ansible-playbook", "-i", hosts, playbook)
    assert problem in output
    assert "/dev/stdin: " not in output.rpartition("TASK ")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topics", "problem"),
    [
        ([{"match": "a*", "max_messages_per_topic": 1}], "found []"),
        ([{"match": "a*b", "max_messages_per_topic": 1}], "has a * before its end: expected a topic"),
        ([{"max_age_seconds": 1}], "retention.topics[0].match: required and missing"),
        ([{"match": "a"}], "retention.topics[0]: expected max_bytes_per_topic"),
    ],
)
def test_limits_of_some_topics_are_checked_before_they_are_written(
    tmp_path: Path, topics: list[dict[str, Any]], problem: str
) -> None:
    variables = {
        "wsqueue_psk": psk_of("everybody"),
        "wsqueue_plain": True,
        "wsqueue_consumer_retention": {"mode": "sqlite", "topics": topics},
        "wsqueue_release_staged": f"{ROOT}:{sysconfig.get_path('purelib')}",
    }
    playbook = tmp_path / "check.yml"
    playbook.write_text(CHECK.replace("producer", "consumer"))
    hosts = inventory(tmp_path, {"h1": LOCAL}, **variables)
    output = control_node.run("ansible-playbook", "-i", hosts, playbook)
    assert problem in " ".join(output.split())


@pytest.mark.slow
def test_keys_that_are_easy_to_guess_are_named(tmp_path: Path) -> None:
    playbook = tmp_path / "weak.yml"
    playbook.write_text(WEAK.replace("GOOD", psk_of("everybody")).replace("OTHER", psk_of("others")))
    output = control_node.run("ansible-playbook", playbook)
    assert "found ['wsqueue_clients.b', 'wsqueue_node_psk']" in output
