"""Hosts that drop out in the middle of a playbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from tests.support.paths import ROOT

from .cluster import Cluster

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


def play_until_a_host_drops_out(cluster: Cluster, step: Step, *arguments: str) -> None:
    """Run a playbook from which a host drops out, and check that the play stops then for all hosts."""
    with _dropping(cluster, step) as variables:
        broken = cluster.try_to_play(step.playbook, *arguments, variables=variables)
    assert broken.returncode != 0, broken.stdout[-10_000:]
    sections = re.split(r"^(?=TASK |PLAY |RUNNING HANDLER )", broken.stdout, flags=re.MULTILINE)
    [lost, *_] = [
        index for index, section in enumerate(sections) if f"fatal: [{step.host}]: UNREACHABLE!" in section
    ]
    after = "".join(sections[lost + 1 :])
    assert "\nchanged: " not in after, after
    assert set(re.findall(r"^PLAY \[(.*?)\]", after, re.MULTILINE)) <= {step.play}


@contextmanager
def _dropping(cluster: Cluster, step: Step) -> Iterator[dict[str, str]]:
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
