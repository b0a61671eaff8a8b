"""For which targets wheels are chosen, and which dependencies each of them has."""

from __future__ import annotations

import re
import tomllib

import pytest

from scripts import wheels
from scripts.wheels import Target
from tests.support.paths import ROOT

PINNED = """# A comment.
every==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
old==2.0 ; python_full_version < '3.12' \\
    --hash=sha256:ba
arm==3.0 ; platform_machine == 'aarch64' and sys_platform == 'linux' \\
    --hash=sha256:ca
mac==4.0 ; sys_platform == 'darwin' \\
    --hash=sha256:da
"""


@pytest.mark.parametrize("name", ["cp311-x86_64", "cp313-aarch64"])
def test_a_target_has_a_name(name: str) -> None:
    assert str(Target.parse(name)) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cp310-x86_64", "wsqueue needs Python 3.11 or later, which cp310-x86_64 is not"),
        ("cp39-aarch64", "wsqueue needs Python 3.11 or later, which cp39-aarch64 is not"),
        ("cp313-riscv64", "no wheels for cp313-riscv64; they have for x86_64 and aarch64"),
        ("cp313", "'cp313' is no target; expected a Python and a machine, as cp313-aarch64"),
        ("pp311-x86_64", "'pp311-x86_64' is no target"),
        ("cp313-x86_64/..", "'cp313-x86_64/..' is no target"),
    ],
)
def test_a_target_that_cannot_be_is_said(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        Target.parse(name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("cp311-x86_64", ["every==1.0", "old==2.0"]),
        ("cp312-x86_64", ["every==1.0"]),
        ("cp311-aarch64", ["every==1.0", "old==2.0", "arm==3.0"]),
        ("cp313-aarch64", ["every==1.0", "arm==3.0"]),
    ],
)
def test_markers_are_those_of_the_target(name: str, wanted: list[str]) -> None:
    lines = wheels.requirements(PINNED, Target.parse(name)).splitlines()
    assert [line.split()[0] for line in lines] == wanted
    assert all(";" not in line and " --hash=sha256:" in line for line in lines)
    assert lines[0].split() == ["every==1.0", "--hash=sha256:aa", "--hash=sha256:ab"]


def test_no_dependency_is_lost() -> None:
    text = (ROOT / "requirements" / "nodes.txt").read_text()
    kept = wheels.requirements(text, Target.parse("cp311-x86_64"))
    assert kept.count("--hash=") == text.count("--hash=")


def test_targets_are_those_for_which_dependencies_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{wheels.OLDEST_MINOR}"
    script = (ROOT / "scripts" / "lock").read_text()
    assert f"for machine in {' '.join(wheels.MACHINES)}; do" in script
    assert f'--python-platform "$machine-manylinux_2_{wheels.GLIBC_MINORS[0]}"' in script
    assert f"for version in 3.{wheels.OLDEST_MINOR} " in script
