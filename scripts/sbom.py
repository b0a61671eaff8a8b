"""The bills of materials of a zipapp and of a release, in CycloneDX's format.

They depend on the files that they are about alone, and have no time and no random number: a zipapp that is
built again has the same one. Beside shiv, which builds the zipapp, it needs the standard library only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

SUFFIX = ".cdx.json"
"""Suffix of the bill of materials, as CycloneDX recommends it."""

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
    package = own(version) | {"hashes": [sha256(zipapp)]}
    # Its start code is in the zipapp.
    tool = {"type": "application", "name": "shiv", "version": importlib.metadata.version("shiv")}
    # The zipapp has all of them, whichever needs which.
    dependencies = [
        {"ref": package["bom-ref"], "dependsOn": [item["bom-ref"] for item in components]},
        *({"ref": item["bom-ref"]} for item in components),
    ]
    metadata = {"tools": {"components": [tool]}, "component": package}
    return document(metadata, components, dependencies=dependencies)


def bill_of_release(version: str, commit: str, packages: Mapping[Path, Sequence[dict[str, Any]]]) -> str:
    """Return the bill of all packages of a version, as JSON.

    Args:
        version: That of the package.
        commit: The commit of which they are made.
        packages: The files, each with the components that it holds besides the package itself.
    """
    components = [
        {
            "type": "file",
            "bom-ref": file.name,
            "name": file.name,
            "hashes": [sha256(file)],
            # A reference is of one component, and several packages hold the same distribution.
            "components": [item | {"bom-ref": f"{file.name}#{item['bom-ref']}"} for item in held],
        }
        for file, held in sorted(packages.items())
    ]
    made_of = {"properties": [{"name": "wsqueue:commit", "value": commit}]}
    return document({"component": own(version) | made_of}, components)


def own(version: str) -> dict[str, Any]:
    """Return the entry of a version of this package."""
    name = f"pkg:generic/wsqueue@{version}"
    about = {"type": "application", "bom-ref": name, "name": "wsqueue", "version": version, "purl": name}
    return about | {"licenses": [{"expression": "MIT"}]}


def document(metadata: dict[str, Any], components: Sequence[dict[str, Any]], **more: object) -> str:
    """Return a bill with components, as JSON."""
    whole = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"lifecycles": [{"phase": "build"}], **metadata},
        "components": components,
        **more,
    }
    return json.dumps(whole, indent=2) + "\n"


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
