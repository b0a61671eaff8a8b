"""The wheels of a release's dependencies, for any Python and machine, wherever this runs.

Beside pip and packaging, it needs the standard library only.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from packaging.markers import Marker

OLDEST_MINOR = 11
"""Minor version of the oldest Python 3 that wsqueue runs on, as in pyproject.toml."""
MACHINES = ("x86_64", "aarch64")
"""Machines for which all dependencies have wheels, as scripts/lock checks."""
GLIBC_MINORS = range(28, 16, -1)
"""Minor versions of glibc 2 for which wheels may be built, the best first.

A host needs 2.28, that of RHEL 8, or a later one. Wheels for Python 3.11 and later begin with 2.17.
"""
IN_DATA = re.compile(r"^[^/]+\.data/(purelib|platlib)/")
"""Where a wheel may have modules besides its root."""


@dataclass(frozen=True)
class Target:
    """A version of Python on a machine with Linux; `str` gives its name, as "cp313-aarch64".

    Attributes:
        minor: Minor version of Python 3.
        machine: The processor, as `uname -m` names it.
    """

    minor: int
    machine: str

    @classmethod
    def parse(cls, name: str) -> Target:
        """Return the target with a name.

        Raises:
            ValueError: There is no such target, or it cannot run wsqueue.
        """
        match = re.fullmatch(r"cp3(\d+)-(\w+)", name)
        if not match:
            raise ValueError(f"{name!r} is no target; expected a Python and a machine, as cp313-aarch64")
        target = cls(int(match[1]), match[2])
        if target.minor < OLDEST_MINOR:
            raise ValueError(f"wsqueue needs Python 3.{OLDEST_MINOR} or later, which {name} is not")
        if target.machine not in MACHINES:
            known = " and ".join(MACHINES)
            raise ValueError(f"the dependencies have no wheels for {name}; they have for {known}")
        return target

    @classmethod
    def running(cls) -> Target:
        """Return the target that runs this.

        Raises:
            ValueError: It cannot run wsqueue.
        """
        return cls.parse(f"cp3{sys.version_info[1]}-{platform.machine()}")

    def __str__(self) -> str:
        return f"cp3{self.minor}-{self.machine}"

    def takes(self, marker: str) -> bool:
        """Return True if a marker of a requirement, as "python_version < '3.12'", is true on the target."""
        version = f"3.{self.minor}"
        return Marker(marker).evaluate(
            {
                "implementation_name": "cpython",
                "implementation_version": f"{version}.0",
                "os_name": "posix",
                "platform_machine": self.machine,
                "platform_python_implementation": "CPython",
                "platform_system": "Linux",
                "python_full_version": f"{version}.0",
                "python_version": version,
                "sys_platform": "linux",
            }
        )


def install(clone: Path, target: Target, site: Path, wheels: Path, file: str = "nodes.txt") -> None:
    """Put the dependencies of a clone into a directory, from which the Python of a target imports them.

    Args:
        clone: The sources.
        target: That for which wheels are chosen.
        site: The directory.
        wheels: Another, to which the wheels are downloaded.
        file: That of `requirements/` with the dependencies.

    Raises:
        CalledProcessError: pip could not download all of them, and has said why.
    """
    download(clone, target, wheels, file)
    # Not by pip, which adds files that depend on its version and on directories.
    for wheel in sorted(wheels.glob("*.whl")):
        unpack(wheel, site)


def download(clone: Path, target: Target, wheels: Path, file: str) -> None:
    """Download the wheels of all dependencies for a target into a directory."""
    wheels.mkdir(parents=True)
    pinned = wheels / "requirements.txt"
    text = (clone / "requirements" / file).read_text(encoding="utf-8")
    pinned.write_text(requirements(text, target), encoding="utf-8")
    pip = [sys.executable, "-I", str(clone / "scripts" / "pip"), "download", "--quiet", "--dest", str(wheels)]
    # A wheel with another hash is refused, and none is built: that would run code that no hash covers. The
    # file has the dependencies of dependencies too.
    checked = ["--require-hashes", "--only-binary", ":all:", "--no-deps"]
    python = [
        "--implementation",
        "cp",
        "--python-version",
        f"3.{target.minor}",
        "--abi",
        f"cp3{target.minor}",
    ]
    # manylinux2014 is an old name of manylinux_2_17.
    tags = [*(f"manylinux_2_{minor}" for minor in GLIBC_MINORS), "manylinux2014"]
    platforms = [word for tag in tags for word in ("--platform", f"{tag}_{target.machine}")]
    subprocess.run([*pip, *checked, *python, *platforms, "--requirement", str(pinned)], check=True)


def requirements(text: str, target: Target) -> str:
    """Return the requirements that hold for a target, without markers, which pip reads as of its own Python.

    Args:
        text: A file of requirements, as uv writes it.
        target: That for which markers are evaluated.
    """
    kept = []
    for line in text.replace("\\\n", "").splitlines():
        pinned, hashed, hashes = line.partition(" --hash=")
        requirement, _, marker = pinned.partition(";")
        if hashed and (not marker or target.takes(marker)):
            kept.append(f"{requirement.strip()} --hash={hashes}\n")
    return "".join(kept)


def unpack(wheel: Path, site: Path) -> None:
    """Put the modules of a wheel where Python looks for them; its scripts have no use here."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            place = IN_DATA.sub("", name)
            if not place.endswith("/") and ".data/" not in place:
                file = site / place
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))
