"""Print all that helps to find a fault on this host, without a key: {"facts": ..., "files": ...}, packed.

support_host.py ROOT SINCE LINES BYTES: ROOT stands before all paths. A journal begins SINCE, a time for
journalctl, and has at most that many lines; it and any other text have at most that many bytes. It changes
nothing, and needs nothing but Python 3.9.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import subprocess
import sys
import urllib.parse
import zlib
from pathlib import Path

root, since, lines, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
RELEASE = root / "opt/wsqueue/current"
ETC, ENGINE = root / "etc/wsqueue", root / "etc/wsqueue-engine"

COMMAND_SECONDS = "60"
"""Time for a command: a disk or a node that hangs must not keep the rest from the operator."""

LEAST_SECRET = 8
"""Characters of the shortest value that is looked for; shorter ones are no keys, and stand everywhere."""

HIDDEN = "[redacted]"
PRIVATE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
PUBLIC = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
SECRET_FILES = ("psk", "node_psk", "client.*", "engine_password", "*.token")
PATTERNS = (
    (PRIVATE, HIDDEN),
    # An address with a user and a password.
    (re.compile(r"://[^/\s@\"']+@"), f"://{HIDDEN}@"),
    # A token of wsqueue.
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{16,}"), HIDDEN),
    (re.compile(r"(?i)(\bauthorization[\"']?\s*[:=]\s*[\"']?\w+\s+)[^\s\"']+"), rf"\g<1>{HIDDEN}"),
    # A setting, a variable of the environment or a field of a log with such a name.
    (
        re.compile(
            r"(?i)(\b\w*(?:psk|password|passwd|passphrase|secret|token|private_?key|api_?key)[\"']?\s*[=:]\s*)"
            r"(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s,;}\]]+)"
        ),
        rf"\g<1>{HIDDEN}",
    ),
)


def read(path: Path) -> str:
    """Return the text of a file, at most as long as any text, "" if there is none."""
    try:
        with path.open("rb") as file:
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""


def secrets() -> list[str]:
    """Return the values that no text may show: keys, passwords, and the lines of private keys."""
    found: set[str] = set()
    for name in SECRET_FILES:
        for path in ETC.glob(name):
            found.update(line.strip() for line in read(path).splitlines())
    for value in re.findall(r'"((?:[^"\\]|\\.)*)"', read(ENGINE / "secrets.conf")):
        found.update((value, value.replace('\\"', '"').replace("\\\\", "\\")))
    for path in [*ETC.rglob("*.pem"), *ENGINE.rglob("*.pem"), *(root / "etc/prometheus").rglob("*.pem")]:
        for block in PRIVATE.findall(read(path)):
            found.update(line.strip() for line in block.splitlines() if not line.startswith("-----"))
    # As in an address.
    found.update([urllib.parse.quote(value, safe="") for value in found])
    # A value that has another in it goes first.
    return sorted((value for value in found if len(value) >= LEAST_SECRET), key=len, reverse=True)


def clean(text: str) -> str:
    """Return a text without secrets."""
    for value in SECRETS:
        text = text.replace(value, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def run(*command: str, **environment: str) -> str:
    """Return the command line and the end of its output, from a whole line on."""
    output, cut = b"", False
    try:
        process = subprocess.Popen(  # noqa: S603 - our own words
            ["timeout", COMMAND_SECONDS, *command],  # noqa: S607 - wherever the host has it
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8", "NO_COLOR": "1", **environment},
        )
        assert process.stdout is not None
        while part := process.stdout.read(65_536):
            output += part
            if len(output) > limit:
                output, cut = output[-limit:], True
        code = process.wait()
    except OSError as error:
        return f"$ {' '.join(command)}\n{error}\n"
    if cut:
        output = b"...\n" + output.partition(b"\n")[2]
    end = "" if code == 0 else f"(exit code {code}{', after a minute' if code == 124 else ''})\n"
    return f"$ {' '.join(command)}\n{output.decode(errors='replace')}{end}\n"


def units() -> list[str]:
    """Return the names of all units of wsqueue, of its NATS server and of its Prometheus."""
    command = ["list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full"]
    listed = run("systemctl", *command, "wsqueue*", "prometheus.service")
    return re.findall(r"^((?:wsqueue|prometheus)\S*\.(?:service|target))\s", listed, re.MULTILINE)


def doctor() -> str:
    """Return the findings of doctor about the configurations of this host."""
    files = sorted(str(path) for path in ETC.glob("*.toml"))
    if not RELEASE.exists() or not files:
        return "There is no release, or no configuration, on this host.\n"
    # A release of an earlier version has no Python of its own.
    python = RELEASE / "python"
    return run(
        str(python) if python.exists() else "/usr/bin/python3",
        "-m",
        "wsqueue",
        "doctor",
        *files,
        PYTHONPATH=f"{RELEASE}/site-packages",
        PYTHONDONTWRITEBYTECODE="1",
    )


def texts() -> dict[str, str]:
    """Return all texts by the names of their files."""
    names = units()
    shown = (
        "Id,LoadState,ActiveState,SubState,Result,ExecMainStatus,ExecMainStartTimestamp,NRestarts,"
        "MemoryCurrent,MemoryMax,TasksCurrent,LimitNOFILE"
    )
    found = {
        "doctor.txt": doctor(),
        "system.txt": "".join(
            (
                run("uname", "-a"),
                run("cat", f"{root}/etc/os-release"),
                run("/usr/bin/python3", "-VV"),
                run("uptime"),
                run("nproc"),
                run("timedatectl", "show"),
                run(
                    "ls",
                    "-l",
                    f"{root}/opt/wsqueue",
                    f"{root}/opt/wsqueue/releases",
                    f"{root}/opt/wsqueue-engine",
                ),
            )
        ),
        "units.txt": run("systemctl", "list-units", "--all", "--plain", "--no-pager", "--full", *names)
        + run("systemctl", "show", f"--property={shown}", *names)
        + run("systemctl", "cat", "--no-pager", *names)
        if names
        else "There are no units of wsqueue.\n",
        "resources.txt": "".join(
            (
                run("df", "-h"),
                run("df", "-i"),
                run("cat", "/proc/meminfo", "/proc/loadavg"),
                run("sh", "-c", "grep . /proc/pressure/*"),
                run("sh", "-c", f"du -sh {root}/var/lib/private/wsqueue/* {root}/var/lib/wsqueue-engine"),
            )
        ),
        "sockets.txt": run("ss", "-tulnp") + run("ss", "-s"),
        "files.txt": run("ls", "-lR", str(ETC), str(ENGINE)),
    }
    for path in [*ETC.glob("*.toml"), ENGINE / "nats.conf"]:
        if text := read(path):
            found[f"config/{path.name}"] = text
    for path in [*ETC.glob("tls/*.pem"), *ENGINE.glob("*.pem")]:
        found[f"config/{path.parent.name}-{path.name}"] = "".join(PUBLIC.findall(read(path)))
    for name in names:
        journal = (
            "--no-pager",
            "--quiet",
            "--output=short-iso-precise",
            f"--since={since}",
            f"--lines={lines}",
        )
        found[f"journal/{name}.txt"] = run("journalctl", f"--unit={name}", *journal)
    return {name: clean(text) for name, text in found.items()}


def facts(found: dict[str, str]) -> dict[str, str]:
    """Return a few words for the index."""
    system = re.search(r'^PRETTY_NAME="?([^"\n]*)', read(root / "etc/os-release"), re.MULTILINE)
    checks = re.findall(r"^\d+ checks?, .*$", found["doctor.txt"], re.MULTILINE)
    failed = re.findall(r"^(\S+)\s+\S+\s+failed\s", found["units.txt"], re.MULTILINE)
    # As with a time that journalctl does not know: its complaint stands behind the command line.
    journals = [text.splitlines() for name, text in found.items() if name.startswith("journal/")]
    unread = [told[1] for told in journals if len(told) > 2 and told[-2].startswith("(exit code ")]
    return {
        "release": RELEASE.resolve().name if RELEASE.exists() else "no release",
        "system": f"{system[1] if system else 'another system'}, {platform.machine()}",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "doctor": checks[-1] if checks else "no result",
        "failed units": ", ".join(failed) or "none",
        "journals": f"not read ({unread[0]})" if unread else "read",
    }


SECRETS = secrets()
gathered = texts()
whole = json.dumps({"facts": facts(gathered), "files": gathered})
print(base64.b64encode(zlib.compress(whole.encode())).decode())
