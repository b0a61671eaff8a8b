"""Molecule: each role by itself, and verified, on a host of its own.

With WSQUEUE_WHOLE_LAB=1 in the environment it is `molecule test`, which applies the roles twice and kills the
nodes as well, as test_rollout does. The scenario `site` is for trying things by hand: test_rollout covers it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

from ..support import control_node
from ..support.labs import OwnLab
from .cluster import needs_time

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

# As in molecule/roles/molecule.yml.
LAB = {"LAB_DIR": str(ROOT / ".lab" / "molecule-roles"), "LAB_BRIDGE": "hlmol1", "LAB_NET": "10.231.8"}


@pytest.fixture
def scenario() -> Iterator[str]:
    """Return a scenario whose host is up; skip where no lab can run, and leave none behind."""
    lab = OwnLab(ROOT / ".lab" / "molecule-roles", ["host1"])
    lab.environment |= LAB
    lab.suites = {"host1": os.environ.get("WSQUEUE_SUITE") or "bookworm"}
    # That of a run before.
    lab.down()
    try:
        # Molecule finds it, and does not boot another.
        lab.up()
        yield "roles"
    finally:
        # Molecule leaves the hosts up when something fails.
        lab.down()


# Otherwise `converge` believes that the host of a run before is still there.
STEPS = ["reset", "converge", "verify"]


@pytest.mark.parametrize("commands", [STEPS, pytest.param(["test"], marks=needs_time)])
def test_molecule(scenario: str, commands: list[str]) -> None:
    colors = {"NO_COLOR": "1", "PY_COLORS": "0"}
    for command in commands:
        result = control_node.try_to_run("molecule", command, "-s", scenario, variables=colors)
        assert result.returncode == 0, result.stdout[-20_000:]
    assert "checks, 0 failed" in result.stdout
