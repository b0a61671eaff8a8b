"""Runs that restart.yml refuses before it restarts anything, and the pace of site.yml, without a host."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

from ..support import control_node

pytestmark = pytest.mark.slow
NO_SUCH_PORT = 65_000
"""A port that no node has on the machine of the tests."""

PACE = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_fact:
        wsqueue_release_deployed: "{{ inventory_hostname in here }}"
- hosts: GROUP:!dead
  gather_facts: false
  serial: EXPRESSION
  tasks:
    - ansible.builtin.debug: {msg: "batch of {{ ansible_play_batch | join(' and ') }}."}
      run_once: true
"""


def inventory(directory: Path, **groups: tuple[str, ...]) -> Path:
    file = directory / "hosts.json"
    ports = {"wsqueue_consumer_ports": [NO_SUCH_PORT], "wsqueue_producer_ports": [NO_SUCH_PORT]}
    children = {
        group: {"hosts": dict.fromkeys(names, control_node.LOCAL | ports)} for group, names in groups.items()
    }
    file.write_text(json.dumps({"all": {"children": children}}))
    return file


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--limit", "d1,c2"], "No host of this run has nodes, so there is nothing to restart; expected"),
        ([], f"c1 has no consumer-{NO_SUCH_PORT}, so nothing restarts; site.yml deploys"),
        (["--limit", "p1"], f"p1 has no producer-{NO_SUCH_PORT}, so nothing restarts"),
    ],
)
def test_a_restart_of_what_is_not_there(tmp_path: Path, arguments: list[str], problem: str) -> None:
    hosts = inventory(tmp_path, consumers=("c1", "c2"), producers=("p1",), demo=("d1",), dead=("c2",))
    result = control_node.try_to_run(
        "ansible-playbook", "-i", hosts, "ansible/playbooks/restart.yml", *arguments
    )
    assert result.returncode != 0
    assert problem in " ".join(result.stdout.split())
    assert "\nPLAY [Restart" not in result.stdout


def test_instances_that_no_host_has_are_named(tmp_path: Path) -> None:
    playbook = tmp_path / "check.yml"
    playbook.write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - ansible.builtin.import_role: {name: wsqueue, tasks_from: preflight_restart}\n"
    )
    # Hosts without nodes lack none.
    hosts = inventory(tmp_path, demo=("d1",))
    result = control_node.try_to_run(
        "ansible-playbook", "-i", hosts, playbook, "-e", f"wsqueue_restart_only=consumer-{NO_SUCH_PORT}"
    )
    assert result.returncode != 0
    assert f"No host of this run has consumer-{NO_SUCH_PORT}, which wsqueue_restart_only names" in " ".join(
        result.stdout.split()
    )


def pace(group: str) -> str:
    """Return the expression with which site.yml chooses how many hosts of a group change at once."""
    plays: list[dict[str, Any]] = yaml.safe_load((ROOT / "ansible" / "playbooks" / "site.yml").read_text())
    [play] = [play for play in plays if play["name"] == f"Deploy the {group}"]
    return json.dumps(play["serial"])


@pytest.mark.parametrize("group", ["consumers", "producers"])
@pytest.mark.parametrize(
    ("deployed", "limit", "batches"),
    [
        ([], "all", ["{0}1 and {0}2 and {0}3"]),
        # One host anywhere that may serve somebody.
        (["p3"], "all", ["{0}1", "{0}2", "{0}3"]),
        # Not known of a host that is left out.
        ([], "c1,c2,p1,p2", ["{0}1", "{0}2"]),
    ],
)
def test_the_first_installation_is_at_once_and_later_runs_are_not(
    tmp_path: Path, group: str, deployed: list[str], limit: str, batches: list[str]
) -> None:
    hosts = inventory(tmp_path, consumers=("c1", "c2", "c3"), producers=("p1", "p2", "p3"), dead=())
    playbook = tmp_path / "pace.yml"
    playbook.write_text(PACE.replace("GROUP", group).replace("EXPRESSION", pace(group)))
    output = control_node.run(
        "ansible-playbook", "-i", hosts, playbook, "--limit", limit, "-e", json.dumps({"here": deployed})
    )
    assert re.findall(r"batch of (.*)\.", output) == [batch.format(group[0]) for batch in batches]
