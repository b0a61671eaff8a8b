"""Settings of a user's environment that must have no part in what is built."""

from __future__ import annotations

from pathlib import Path

PIP_CONF = """
[global]
user = true
require-virtualenv = true
quiet = 3
[install]
target = /nowhere
no-deps = true
"""


def hostile_environment(home: Path) -> dict[str, str]:
    """Return variables, and make a home directory for them that has settings too."""
    config = home / ".config" / "pip" / "pip.conf"
    config.parent.mkdir(parents=True)
    config.write_text(PIP_CONF)
    modules = home / "modules"
    modules.mkdir()
    for name in ("zipfile", "sitecustomize", "tomllib"):
        (modules / f"{name}.py").write_text("raise RuntimeError('a module of the user')")
    pip = dict.fromkeys(("USER", "REQUIRE_VIRTUALENV", "NO_DEPS", "DRY_RUN", "PRE"), "1")
    pip |= dict.fromkeys(("TARGET", "PREFIX", "ROOT", "CONSTRAINT", "PYTHON", "PLATFORM"), "/nowhere")
    python = {
        "PYTHONPATH": str(modules),
        "PYTHONHOME": "/nowhere",
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
    }
    others = {"HOME": str(home), "TZ": "Asia/Kathmandu", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1700000000"}
    others |= {"CDPATH": str(home)}
    return {f"PIP_{name}": value for name, value in pip.items()} | python | others
