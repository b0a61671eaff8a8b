"""A host drops out at each step of a playbook: the play stops, and running it again converges.

With WSQUEUE_WHOLE_LAB=1 in the environment all steps are tried, which takes an hour; else one of them.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from tests.support.paths import ROOT

from .cluster import HOSTS, NEW, OLD, VERIFIED, WHOLE, Cluster

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

STOP_SSH = "systemctl stop ssh.service; systemctl kill --signal=KILL 'session-*.scope'"
"""Also those connections end that Ansible has kept open."""


class Step(NamedTuple):
    """The moment at which a host drops out: when a play, or a task in it, begins.

    Attributes:
        playbook: The playbook.
        play: Name of the play.
        times: Number of the play among all of that name, where each batch of hosts counts.
        host: The host.
        task: Beginning of the name of the task, "" for the beginning of the play.
    """

    playbook: str
    play: str
    times: int
    host: str
    task: str = ""


def reloads(playbook: str, number: int) -> list[Step]:
    """Return all steps of a reload, of which a playbook may have several."""
    batches = 2 * number
    return [
        Step(playbook, "Check that all hosts take part", number + 1, "demo1"),
        Step(playbook, "Reload the consumers", batches + 1, "consumer1"),
        Step(playbook, "Reload the consumers", batches + 2, "consumer2"),
        Step(playbook, "Reload the consumers", batches + 2, "consumer2", "wsqueue_node : Enable, and start"),
        Step(playbook, "Reload the producers", number + 1, "producer1"),
        Step(playbook, "Reload the producers", number + 1, "producer1", "wsqueue_node : Enable, and start"),
        Step(playbook, "Prepare the demo hosts", number + 1, "demo1"),
    ]


ROTATE_PSK, ROTATE_TLS, ROTATE_CA = (f"ansible/playbooks/rotate_{name}.yml" for name in ("psk", "tls", "ca"))
ALL = [
    *(step for number in range(3) for step in reloads(ROTATE_PSK, number)),
    *(Step(ROTATE_PSK, "Run the demo tests", number + 1, "demo1") for number in range(3)),
    *reloads(ROTATE_TLS, 0),
    Step(ROTATE_TLS, "Run the demo tests", 1, "demo1"),
    *(step for number in range(3) for step in reloads(ROTATE_CA, number)),
    *(Step(ROTATE_CA, "Run the demo tests", number + 1, "demo1") for number in range(2)),
    Step("site.yml", "Check all hosts", 1, "producer1"),
    Step("site.yml", "Deploy the consumers, one host after another", 1, "consumer1"),
    Step(
        "site.yml",
        "Deploy the consumers, one host after another",
        2,
        "consumer2",
        "wsqueue : Install the units",
    ),
    Step("site.yml", "Deploy the producers, one host after another", 1, "producer1"),
    Step(
        "site.yml",
        "Deploy the producers, one host after another",
        1,
        "producer1",
        "wsqueue_node : Enable, and start",
    ),
    Step("site.yml", "Deploy the demo hosts", 1, "demo1"),
    Step("site.yml", "Run the demo tests", 1, "demo1"),
]
HALF_ROTATED = Step(ROTATE_PSK, "Reload the consumers", 4, "consumer2")
"""A host before this one uses the new key already."""


@contextmanager
def dropping(cluster: Cluster, step: Step) -> Iterator[dict[str, str]]:
    """Return the environment in which Ansible stops the host's sshd; at the end it runs again."""
    command = cluster.lab.inside(step.host, "sh", "-c", STOP_SSH)
    when = {"play": step.play, "task": step.task, "times": step.times, "command": command}
    try:
        yield {
            "ANSIBLE_CALLBACK_PLUGINS": str(ROOT / "tests" / "lab" / "plugins"),
            "ANSIBLE_CALLBACKS_ENABLED": "dropout",
            "DROPOUT": json.dumps(when),
        }
    finally:
        subprocess.run(cluster.lab.inside(step.host, "systemctl", "start", "ssh.service"), check=True)


def version_of(cluster: Cluster) -> str:
    return cluster.lab.ssh("demo1", "wsqueue --version").split()[-1]


@pytest.mark.parametrize(
    "step",
    ALL if WHOLE else [HALF_ROTATED],
    ids=lambda step: "-".join(re.findall(r"\w+", " ".join(map(str, step)))),
)
def test_the_play_stops_and_running_it_again_converges(deployed: Cluster, step: Step) -> None:
    version = version_of(deployed)
    if step.playbook == "site.yml":
        version = NEW if version == OLD else OLD
    arguments = ["-e", f"wsqueue_release_zipapp={deployed.zipapps[version]}"]
    if step.playbook == ROTATE_PSK:
        deployed.psk, deployed.node_psk = (secrets.token_urlsafe(32) for _ in range(2))
        deployed.inventory("good")

    with dropping(deployed, step) as variables:
        broken = deployed.try_to_play(step.playbook, *arguments, variables=variables)
    assert broken.returncode != 0, broken.stdout[-10_000:]
    sections = re.split(r"^(?=TASK |PLAY |RUNNING HANDLER )", broken.stdout, flags=re.MULTILINE)
    [lost, *_] = [
        index for index, section in enumerate(sections) if f"fatal: [{step.host}]: UNREACHABLE!" in section
    ]
    after = "".join(sections[lost + 1 :])
    assert "\nchanged: " not in after, after
    assert set(re.findall(r"^PLAY \[(.*?)\]", after, re.MULTILINE)) <= {step.play}

    output = deployed.play(step.playbook, *arguments)
    assert VERIFIED.search(output)
    for host in HOSTS:
        assert deployed.lab.ssh(host, "cat /etc/wsqueue/psk") == deployed.psk
    assert version_of(deployed) == version
    # Nothing is left to do, on any host.
    output = deployed.play("site.yml", *arguments, "--check")
    assert "\nchanged: " not in output
