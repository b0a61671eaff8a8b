"""A host drops out at each step of a playbook: the play stops, and running it again converges.

These tests take an hour, and run with WSQUEUE_WHOLE_LAB=1 in the environment. test_rollout tries one
of the steps under load.
"""

from __future__ import annotations

import re
import secrets

import pytest

from .cluster import HOSTS, NEW, OLD, VERIFIED, Cluster, needs_time
from .dropouts import Step, play_until_a_host_drops_out

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]


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
    Step("site.yml", "Deploy the consumers", 1, "consumer1"),
    Step(
        "site.yml",
        "Deploy the consumers",
        2,
        "consumer2",
        "wsqueue : Install the units",
    ),
    Step("site.yml", "Deploy the producers", 1, "producer1"),
    Step(
        "site.yml",
        "Deploy the producers",
        1,
        "producer1",
        "wsqueue_node : Enable, and start",
    ),
    Step("site.yml", "Deploy the demo hosts", 1, "demo1"),
    Step("site.yml", "Run the demo tests", 1, "demo1"),
]


def version_of(cluster: Cluster) -> str:
    return cluster.lab.ssh("demo1", "wsqueue --version").split()[-1]


@needs_time
@pytest.mark.parametrize("step", ALL, ids=lambda step: "-".join(re.findall(r"\w+", " ".join(map(str, step)))))
def test_the_play_stops_and_running_it_again_converges(deployed: Cluster, step: Step) -> None:
    version = version_of(deployed)
    if step.playbook == "site.yml":
        version = NEW if version == OLD else OLD
    arguments = ["-e", f"wsqueue_release_zipapp={deployed.zipapps[version]}"]
    if step.playbook == ROTATE_PSK:
        deployed.psk, deployed.node_psk = (secrets.token_urlsafe(32) for _ in range(2))
        deployed.inventory("good")

    play_until_a_host_drops_out(deployed, step, *arguments)
    output = deployed.play(step.playbook, *arguments)
    assert VERIFIED.search(output)
    for host in HOSTS:
        assert deployed.lab.ssh(host, "cat /etc/wsqueue/psk") == deployed.psk
    assert version_of(deployed) == version
    # Nothing is left to do, on any host.
    output = deployed.play("site.yml", *arguments, "--check")
    assert "\nchanged: " not in output
