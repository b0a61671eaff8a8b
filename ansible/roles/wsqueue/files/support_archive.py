"""Write an archive of the answers of hosts: support_archive.py ARCHIVE, which is a .tar.gz with mode 0600.

Standard input has an object with `time`, `ansible`, and `hosts`: of each its `groups`, and `data` from
support_host.py, or the `problem` that has kept it from us.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import tarfile
import time
import zlib
from pathlib import Path
from typing import Any

MAX_HOST_BYTES = 500_000_000
"""Most bytes of the answer of a host, unpacked: a host must not fill the memory of the control node."""

NAME = re.compile(r"(?:[\w@:%+-][\w@.:%+-]*/)*[\w@:%+-][\w@.:%+-]*", re.ASCII)
"""Names of files in the archive: none leads out of the folder of its host."""


def unpacked(data: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the facts and the files that a host has told.

    Raises:
        ValueError: They are too large, or not from support_host.py.
    """
    try:
        whole = zlib.decompressobj().decompress(base64.b64decode(data, validate=True), MAX_HOST_BYTES)
        told = json.loads(whole)
        facts = {str(name): str(value) for name, value in told["facts"].items()}
        return facts, {str(name): str(text) for name, text in told["files"].items() if NAME.fullmatch(name)}
    except (zlib.error, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError("what it told cannot be read") from error


def add(archive: tarfile.TarFile, name: str, text: str, made: int) -> None:
    """Add a file that only its owner may read."""
    data = text.encode(errors="replace")
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, made
    archive.addfile(entry, io.BytesIO(data))


def index(told: dict[str, Any], lines: list[str]) -> str:
    """Return the text that comes first."""
    head = f"wsqueue support archive of {told['time']} (UTC), made by ansible-core {told['ansible']}.\n"
    explained = (
        "Each host that answered has a folder: doctor.txt (begin there), units.txt, journal/, config/,\n"
        "system.txt, resources.txt, sockets.txt, files.txt. Keys, passwords and tokens are [redacted].\n"
    )
    return f"{head}\n{explained}\n" + "".join(f"{line}\n" for line in lines)


def main() -> None:
    """Write the archive, and print a line for each host."""
    path, told = Path(sys.argv[1]), json.load(sys.stdin)
    name = path.name.removesuffix(".tar.gz")
    files: dict[str, str] = {}
    lines = []
    for host, one in sorted(told["hosts"].items()):
        about = f"{host} ({', '.join(one['groups'])})"
        problem = one["problem"]
        if not problem:
            try:
                facts, texts = unpacked(one["data"])
            except ValueError as error:
                problem = str(error)
        if problem:
            lines.append(f"{about}: NOTHING, {' '.join(problem.split())}")
            continue
        lines.append(
            f"{about}: {' '.join('; '.join(f'{key} {value}' for key, value in facts.items()).split())}"
        )
        folder = re.sub(r"[^\w@.:%+-]|^\.", "_", host)
        files |= {f"{folder}/{file}": text for file, text in sorted(texts.items())}
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    now = int(time.time())
    try:
        with (
            os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            tarfile.open(fileobj=file, mode="w:gz") as archive,
        ):
            add(archive, f"{name}/index.txt", index(told, lines), now)
            for file_name, text in files.items():
                add(archive, f"{name}/{file_name}", text, now)
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    print(*lines, f"{path}: {path.stat().st_size:,} bytes", sep="\n")


try:
    main()
except OSError as error:
    sys.exit(f"The archive cannot be written: {error}.")
