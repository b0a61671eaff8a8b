"""The bill of materials of a zipapp, in CycloneDX's format.

It depends on the zipapp and the wheels in it alone, and has no time and no random number: a zipapp that is
built again has the same one. Beside shiv, which builds the zipapp, it needs the standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

SPDX = {"Apache Software License": "Apache-2.0", "MIT License": "MIT"}
"""Identifiers of the classifiers that name one licence; "BSD License" may be one of several."""

APPROVED = "License :: OSI Approved :: "


def bill(zipapp: Path, version: str, wheels: Iterable[Path]) -> str:
    """Return the bill of a zipapp of a version of this package, as JSON.

    Args:
        zipapp: The file.
        version: That of the package.
        wheels: The distributions in the zipapp besides the package, as they were downloaded.
    """
    components = sorted((component(wheel) for wheel in wheels), key=lambda item: str(item["bom-ref"]))
    package = {
        "type": "application",
        "bom-ref": f"pkg:generic/wsqueue@{version}",
        "name": "wsqueue",
        "version": version,
        "purl": f"pkg:generic/wsqueue@{version}",
        "licenses": [{"expression": "MIT"}],
        "hashes": [sha256(zipapp)],
    }
    # Its start code is in the zipapp.
    tool = {"type": "application", "name": "shiv", "version": importlib.metadata.version("shiv")}
    document = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [tool]},
            "component": package,
        },
        "components": components,
        # The zipapp has all of them, whichever needs which.
        "dependencies": [
            {"ref": package["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]},
            *({"ref": item["bom-ref"]} for item in components),
        ],
    }
    return json.dumps(document, indent=2) + "\n"


def component(wheel: Path) -> dict[str, Any]:
    """Return the entry of a distribution."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        about = Parser().parsestr(archive.read(name).decode(), headersonly=True)
    purl = f"pkg:pypi/{re.sub('[-_.]+', '-', about['Name']).lower()}@{about['Version']}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": about["Name"],
        "version": about["Version"],
        "purl": purl,
        "licenses": licences(about),
        "hashes": [sha256(wheel)],
    }


def licences(about: Message) -> list[dict[str, Any]]:
    """Return the licences that a distribution declares: as an expression, by classifiers, or in words."""
    if expression := about["License-Expression"]:
        return [{"expression": expression}]
    classifiers = [line for line in about.get_all("Classifier", []) if line.startswith(APPROVED)]
    names = sorted(line.removeprefix(APPROVED) for line in classifiers)
    if not names:
        names = (about["License"] or "").splitlines()[:1]
    return [{"license": {"id": SPDX[name]} if name in SPDX else {"name": name}} for name in names]


def sha256(file: Path) -> dict[str, str]:
    """Return the entry of a file's hash."""
    return {"alg": "SHA-256", "content": hashlib.sha256(file.read_bytes()).hexdigest()}
