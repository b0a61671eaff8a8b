"""The sources of a release, and the hash of them in a zipapp.

It uses the standard library only, because Ansible's control node uses it too, as a plugin of the collection.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path

ENTRY = "sources"
"""Name of the file in a zipapp that has the hash of the sources."""

FILES = (
    "LICENSE",
    "requirements/nodes.txt",
    "scripts/pip",
    "scripts/sources.py",
    "scripts/wheels.py",
    "scripts/zipapp",
)
"""Files that decide the content of a zipapp, besides those of the package."""


def package_files(clone: Path) -> list[Path]:
    """Return the files of the package, in an order that is the same everywhere."""
    found = (path for path in (clone / "wsqueue").rglob("*") if path.is_file())
    files = [path for path in found if path.suffix != ".pyc" and not path.name.startswith(".")]
    return sorted(files, key=lambda path: path.relative_to(clone).parts)


def version(clone: Path) -> str:
    """Return the version of the package.

    Raises:
        ValueError: Its file has none.
    """
    text = (clone / "wsqueue" / "version.py").read_text(encoding="utf-8")
    if match := re.search(r'^__version__ = "(.+)"', text, re.MULTILINE):
        return match[1]
    raise ValueError(f"{clone}/wsqueue/version.py has no version")


def sources_hash(clone: Path) -> str:
    """Return a hash of everything in a clone that decides the content of a zipapp, as 64 hexadecimal digits.

    Documents, tests and git's history have no part in it, nor have the Python and the machine of the zipapp.
    """
    total = hashlib.sha256()
    for path in [*package_files(clone), *(clone / name for name in FILES)]:
        name = path.relative_to(clone).as_posix().encode()
        total.update(hashlib.sha256(name).digest() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def add_package(clone: Path, site: Path) -> None:
    """Put the package itself into a directory from which Python imports it, with its licence and metadata."""
    number = version(clone)
    about = f"wsqueue-{number}.dist-info"
    files = {path.relative_to(clone).as_posix(): path.read_bytes() for path in package_files(clone)}
    files[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: wsqueue\nVersion: {number}\n".encode()
    files[f"{about}/LICENSE"] = (clone / "LICENSE").read_bytes()
    for name, data in files.items():
        file = site / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def sum_file(zipapp: Path) -> Path:
    """Return the file beside a zipapp that says its SHA-256, as `sha256sum` writes it."""
    return zipapp.with_name(f"{zipapp.name}.sha256")


def zipapp_facts(zipapp: str | Path) -> dict[str, str]:
    """Return how to know a zipapp: its `sha256`, and the sum that was `written` beside it when it was built.

    Besides these, the hash of its `content`, and that of its `sources`. Each is "" where there is none. The
    hash of the content is not that of the file, whose compression depends on the machine.
    """
    facts = {"sha256": "", "written": "", "content": "", "sources": ""}
    try:
        facts["sha256"] = hashlib.sha256(Path(zipapp).read_bytes()).hexdigest()
        facts["written"] = sum_file(Path(zipapp)).read_text(encoding="utf-8").partition(" ")[0].strip()
    except (OSError, ValueError):
        # Without a sum beside it.
        pass
    try:
        with zipfile.ZipFile(zipapp) as archive:
            facts["content"] = str(json.loads(archive.read("environment.json"))["build_id"])
            facts["sources"] = archive.read(ENTRY).decode()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        # Another file, or a zipapp of an older version, which did not say so.
        pass
    return facts
