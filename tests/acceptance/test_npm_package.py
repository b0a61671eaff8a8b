"""The npm package of the JavaScript client: its files, its types, and a program that uses it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from playwright._impl._driver import compute_driver_executable

from wsqueue.version import __version__

from ..support.commands import SECONDS
from ..support.documents import code_blocks
from ..support.hostile_environment import hostile_environment
from ..support.paths import ROOT
from ..support.processes import Cluster
from ..support.releases import released

NODE = compute_driver_executable()[0]
"""A Node that has a WebSocket: that of the machine may be too old."""

TYPESCRIPT = "typescript@5.9.3"
TYPESCRIPT_SHA512 = "jl1vZzPDinLr9eUt3J/t7V6FgNEw9QjvBPdysz9KfQDD41fQrC2Y4vKQdiaUpFT4bXlb1RHhLpp8wtm6M5TgSw=="
TYPES = ROOT / "packaging" / "npm" / "client.d.ts"
DECLARATIONS = """
declare const client: import("wsqueue").WsqueueClient;
declare const file: File;
declare module "node:fs" {
  export function readFileSync(path: string, encoding: "utf8"): string;
}
"""
"""Names that the examples of docs/javascript.md take as given."""


def build(directory: Path, **options: Any) -> Path:
    command = [sys.executable, "-I", str(ROOT / "scripts" / "npm-package"), str(directory)]
    told = subprocess.run(command, check=True, capture_output=True, text=True, **options)
    return Path(told.stdout.strip())


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released("wsqueue-*.tgz") or build(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def project(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty project in which the package is installed."""
    directory = tmp_path_factory.mktemp("project")
    (directory / "package.json").write_text('{"private": true, "type": "module"}')
    if npm := shutil.which("npm"):
        quiet = ["--offline", "--no-audit", "--no-fund", "--loglevel=error", f"--cache={directory / 'cache'}"]
        subprocess.run([npm, "install", *quiet, package], cwd=directory, check=True)
    else:
        with tarfile.open(package) as archive:
            archive.extractall(directory / "unpacked", filter="data")
        place = directory / "node_modules" / "wsqueue"
        place.parent.mkdir()
        (directory / "unpacked" / "package").rename(place)
    return directory


def run(project: Path, program: str) -> str:
    """Return the output of a module in a project."""
    (project / "program.js").write_text(program)
    done = subprocess.run(
        [NODE, "program.js"], cwd=project, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_has_the_client_and_nothing_of_where_it_was_built(package: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "other", umask=0o077, env=hostile_environment(tmp_path / "home"))
    assert again.read_bytes() == package.read_bytes()
    with tarfile.open(package) as archive:
        held = {entry.name: archive.extractfile(entry) for entry in archive}
        contents = {name: file.read() for name, file in held.items() if file is not None}
    client = ROOT / "wsqueue" / "monitoring" / "web" / "client.js"
    assert contents["package/client.js"] == client.read_bytes()
    about = json.loads(contents["package/package.json"])
    assert about["version"] == __version__
    named = [about["types"], *about["exports"]["."].values(), about["exports"]["./package.json"]]
    assert {name.replace("./", "package/") for name in named} < set(contents)
    assert {"package/LICENSE", "package/README.md"} < set(contents)


def test_all_that_is_exported_has_a_type(project: Path) -> None:
    exported = json.loads(
        run(
            project,
            """
            import * as wsqueue from "wsqueue";
            const kinds = Object.entries(wsqueue).map(([name, value]) => {
              const isClass = typeof value === "function" && /^class/.test(value.toString());
              return [name, isClass ? "class" : typeof value === "function" ? "function" : "const"];
            });
            console.log(JSON.stringify(Object.fromEntries(kinds)));
            """,
        )
    )
    typed = {
        name: kind
        for kind, name in re.findall(r"^export (const|class|function) (\w+)", TYPES.read_text(), re.MULTILINE)
    }
    assert typed == exported
    assert len(exported) > 40


def test_all_that_has_a_type_is_there(project: Path) -> None:
    """Whatever a program may call or read by the types exists in the objects that it gets."""
    members = {
        name: sorted(
            set(re.findall(r"^  (?:readonly )?(\w+)(?=[(:]|\?:)", body, re.MULTILINE)) - {"constructor"}
        )
        for name, body in re.findall(
            r"^export (?:class|interface) (\w+).*?\{\n(.*?)^\}", TYPES.read_text(), re.MULTILINE | re.DOTALL
        )
    }
    program = f"""
    import {{ WsqueueClient }} from "wsqueue";
    const members = {json.dumps(members)};
    const nodes = ["127.0.0.1:1"];
    const client = new WsqueueClient({{ consumers: nodes, producers: nodes, psk: "k".repeat(30) }});
    const got = {{
      WsqueueClient: client,
      Subscription: client.subscribe("a", () => {{}}),
      GroupSubscription: client.subscribe("b", () => {{}}, {{ group: "g" }}),
      ReaderSubscription: client.subscribe("c", () => {{}}, {{ reader: "r" }}),
    }};
    for (const [kind, object] of Object.entries(got))
      for (const name of members[kind]) if (!(name in object)) console.log(kind, name);
    client.close();
    """
    assert {"close", "consumerOf", "consumers", "publish", "subscribe"} < set(members["WsqueueClient"])
    assert run(project, program) == ""


def test_nothing_keeps_a_program_running_after_the_end_of_its_client(project: Path) -> None:
    program = """
    import { WsqueueClient } from "wsqueue";
    const nodes = ["127.0.0.1:1"];
    const lost = new Set();
    await new Promise((down) => {
      const client = new WsqueueClient({ consumers: nodes, producers: nodes, psk: "k", onState: (told) => {
        if (told.state === "down") lost.add(told.role);
        if (lost.size === 2) setImmediate(() => down(client.close()));
      } });
      client.publish("a", "b").catch(() => {});
      for (const options of [{}, { group: "g" }, { reader: "r" }]) client.subscribe("a", () => {}, options);
      client.subscribe({ prefix: "a" }, () => {});
    });
    await new Promise(setImmediate);
    console.log(process.getActiveResourcesInfo().filter((one) => one === "Timeout"));
    """
    assert run(project, program) == "[]\n"


def test_its_program_runs(project: Path, standing_cluster: Cluster) -> None:
    (program,) = code_blocks(ROOT / "packaging" / "npm" / "README.md", "js")
    assert '["127.0.0.1:10001"]' in program
    assert '["127.0.0.1:10002"]' in program
    consumers, producers = (
        json.dumps([node.address for node in nodes])
        for nodes in (standing_cluster.consumers, standing_cluster.producers)
    )
    program = program.replace('["127.0.0.1:10001"]', consumers).replace('["127.0.0.1:10002"]', producers)
    shutil.copy(standing_cluster.directory / "psk", project / "psk")
    assert run(project, program) == "news hello\n"


@pytest.fixture(scope="module")
def typescript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the compiler; skip where npm cannot fetch it."""
    directory = tmp_path_factory.mktemp("typescript")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is missing, which fetches the compiler of TypeScript")
    told = subprocess.run(
        [npm, "pack", TYPESCRIPT, "--silent", "--fetch-retries=1"],
        cwd=directory, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if told.returncode:
        pytest.skip(f"npm cannot fetch {TYPESCRIPT}: {told.stderr.strip()}")
    file = directory / told.stdout.strip()
    digest = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    assert digest == TYPESCRIPT_SHA512
    with tarfile.open(file) as archive:
        archive.extractall(directory, filter="data")
    return directory / "package" / "lib" / "tsc.js"


def compile_all(typescript: Path, project: Path, *options: str) -> str:
    """Return the complaints of the compiler."""
    command: list[str | Path] = [
        NODE,
        typescript,
        "--noEmit",
        "--target",
        "es2022",
        "--module",
        "nodenext",
        *options,
    ]
    told = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120, check=False)
    assert told.returncode in (0, 2), told.stderr
    return told.stdout


def test_the_types_take_right_programs_and_find_mistakes(project: Path, typescript: Path) -> None:
    shutil.copy(Path(__file__).with_name("usage.ts"), project)
    # Without the types of browsers, which a program for Node lacks.
    assert compile_all(typescript, project, "--strict", "--lib", "es2022", "usage.ts") == ""


def test_the_examples_of_the_documents_have_the_types(project: Path, typescript: Path) -> None:
    (project / "given.d.ts").write_text(DECLARATIONS)
    blocks = code_blocks(ROOT / "docs" / "javascript.md", "js")
    blocks += code_blocks(ROOT / "packaging" / "npm" / "README.md", "js")
    assert len(blocks) > 5
    names = []
    for number, block in enumerate(blocks):
        names.append(f"example{number}.js")
        # A module of its own, whose names meet no others.
        text = block.replace('"./client.mjs"', '"wsqueue"').replace('"./client.js"', '"wsqueue"')
        imports = "" if "import " in text else 'import { WsqueueClient } from "wsqueue";\n'
        (project / names[-1]).write_text(f"{imports}{text}\nexport {{}};\n")
    options = ["--allowJs", "--checkJs", "--strict", "--lib", "es2022,dom", "given.d.ts"]
    assert compile_all(typescript, project, *options, *names) == ""
