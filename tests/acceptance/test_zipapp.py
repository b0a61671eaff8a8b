"""The zipapp runs by itself, and what is in it depends on its sources and on nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.support.environment import without_coverage
from tests.support.hostile_environment import PIP_CONF, hostile_environment
from tests.support.paths import ROOT
from tests.support.zipapps import run
from wsqueue.cli.main import main
from wsqueue.version import __version__

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

X86_64, AARCH64 = 62, 183
"""Machines, as ELF files name them in bytes 18 and 19."""

SOURCES = ("wsqueue", "scripts", "requirements", "LICENSE")


class Clone:
    """A copy of what a zipapp is made of."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        for source in SOURCES:
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, directory / source)

    def build(
        self, *targets: str, umask: int = 0o022, environment: dict[str, str] | None = None
    ) -> list[Path]:
        """Build the zipapps; in another environment than that of this test, if one is given."""
        told: subprocess.CompletedProcess[str] = subprocess.run(
            self.command(*targets),
            check=True,
            timeout=200,
            umask=umask,
            env=without_coverage() | (environment or {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        return [self.directory / line for line in told.stdout.splitlines()]

    def command(self, *targets: str) -> list[str]:
        return [sys.executable, "-I", str(self.directory / "scripts" / "zipapp"), *targets]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    return Clone(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def zipapp(clone: Clone) -> Path:
    [built] = clone.build()
    return built


def test_it_has_the_client_of_a_shared_log(zipapp: Path, tmp_path: Path) -> None:
    """A consumer with such a log waits for the servers, and ends when it is told to."""
    (tmp_path / "psk").write_text("a key that is long enough")
    (tmp_path / "psk").chmod(0o600)
    file = tmp_path / "consumer.toml"
    file.write_text(
        'role = "consumer"\nlocal = true\nlisten = ["127.0.0.1:0"]\npsk_file = "psk"\n'
        'limits.drain_seconds = 0.5\nretention.mode = "jetstream"\nretention.jetstream.servers = ["nats://127.0.0.1:9"]\n'
    )
    with subprocess.Popen(
        [sys.executable, "-I", zipapp, "consumer", file], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "no NATS server answers" in line), "")
        process.terminate()
        try:
            # It ends though it has not started.
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
    assert "no NATS server answers" in line


def test_nothing_but_the_sources_has_a_part_in_it(zipapp: Path, tmp_path: Path) -> None:
    """Neither the place, nor git's history, umask, locale, time zone, and settings of a user."""
    clone = Clone(tmp_path / "second place")
    (clone.directory / "README.md").write_text("A document.")
    (clone.directory / "wsqueue" / "__pycache__").mkdir(exist_ok=True)
    (clone.directory / "wsqueue" / "__pycache__" / "old.cpython-311.pyc").write_text("compiled")
    git = ["git", "-C", str(clone.directory), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "Begin"]):
        subprocess.run([*git, *command], check=True)
    # By its name, too, the target of this machine gets the same file.
    target = zipapp.stem.removeprefix(f"wsqueue-{__version__}-")
    [second] = clone.build(target, umask=0o077, environment=hostile_environment(tmp_path / "home"))
    assert second.name == zipapp.name
    assert second.read_bytes() == zipapp.read_bytes()
    bills = [file.with_suffix(".cdx.json").read_bytes() for file in (second, zipapp)]
    assert bills[0] == bills[1]


def test_its_bill_of_materials_has_all_that_is_in_it(zipapp: Path) -> None:
    text = zipapp.with_suffix(".cdx.json").read_text()
    # The schema is that of CycloneDX.
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    [own] = bill["metadata"]["component"]["hashes"]
    assert own == {"alg": "SHA-256", "content": hashlib.sha256(zipapp.read_bytes()).hexdigest()}
    with zipfile.ZipFile(zipapp) as archive:
        places = (
            re.match(r"site-packages/([^/]+)-([^-/]+)\.dist-info/", name) for name in archive.namelist()
        )
        held = {(place[1].lower().replace("_", "-"), place[2]) for place in places if place}
    named = {(re.sub("[-_.]+", "-", item["name"]).lower(), item["version"]) for item in bill["components"]}
    assert named | {("wsqueue", __version__)} == held
    pinned = (ROOT / "requirements" / "nodes.txt").read_text()
    for item in bill["components"]:
        assert item["purl"] == f"pkg:pypi/{re.sub('[-_.]+', '-', item['name']).lower()}@{item['version']}"
        assert item["licenses"], item
        [found] = item["hashes"]
        assert f"--hash=sha256:{found['content']}" in pinned
    licences = {item["name"]: item["licenses"] for item in bill["components"]}
    assert licences["websockets"] == [{"expression": "BSD-3-Clause"}]
    assert licences["mdurl"] == [{"license": {"id": "MIT"}}]
    assert licences["psutil"] == [{"license": {"name": "BSD-3-Clause"}}]


def test_it_is_built_anew_only_for_other_sources(clone: Clone, zipapp: Path) -> None:
    content, made = zipapp.read_bytes(), zipapp.stat().st_mtime_ns
    bill = zipapp.with_suffix(".cdx.json")
    listed = bill.read_text()
    (clone.directory / "requirements" / "nodes.txt").touch()
    clone.build()
    assert zipapp.stat().st_mtime_ns == made
    # Put back with its old time, as a copy or a checkout may.
    source = clone.directory / "wsqueue" / "version.py"
    text, times = source.read_text(), (source.stat().st_atime_ns, source.stat().st_mtime_ns)
    source.write_text(f"{text}\n# Another line.\n")
    os.utime(source, ns=times)
    clone.build()
    assert zipapp.read_bytes() != content
    assert bill.read_text() != listed
    # The sources are back, and so is their zipapp, but damaged: its sum is another one.
    source.write_text(text)
    zipapp.write_bytes(content + b"more")
    clone.build()
    assert zipapp.read_bytes() == content
    assert bill.read_text() == listed
    command = ["sha256sum", "--check", "--strict", f"{zipapp.name}.sha256"]
    assert subprocess.run(command, cwd=zipapp.parent, check=False).returncode == 0


def test_pip_keeps_the_way_to_packages_alone(tmp_path: Path) -> None:
    variables = hostile_environment(tmp_path)
    config = tmp_path / ".config" / "pip" / "pip.conf"
    config.write_text(
        f"{PIP_CONF}index-url = https://packages.example.com/simple\nproxy = http://p.example.com\n"
    )
    variables |= {
        "PIP_PROXY": "http://proxy.example.com:3128",
        "PIP_EXTRA_INDEX_URL": "https://a.example.com",
    }
    told = subprocess.run(
        [sys.executable, "-I", ROOT / "scripts" / "pip", "config", "list"],
        env={key: value for key, value in os.environ.items() if not key.startswith("PIP_")} | variables,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    kept = dict(line.split("=", 1) for line in told.stdout.splitlines())
    assert kept[":env:.index-url"] == "'https://packages.example.com/simple'"
    assert kept[":env:.proxy"] == "'http://proxy.example.com:3128'"
    assert kept[":env:.extra-index-url"] == "'https://a.example.com'"
    names = {name.rpartition(".")[2] for name in kept}
    assert not names & {
        "user",
        "target",
        "prefix",
        "root",
        "require-virtualenv",
        "no-deps",
        "constraint",
        "quiet",
        "pre",
    }
    assert all(name.startswith(":env:.") for name in kept)


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "in a folder")
    builds = [
        subprocess.Popen(clone.command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    (told, built), (other, found) = sorted((build.communicate(timeout=200) for build in builds), key=str)
    assert told == other
    assert [build.returncode for build in builds] == [0, 0]
    assert sorted("Building" in shown for shown in (built, found)) == [False, True]


def test_another_python_and_machine_get_their_own_wheels(clone: Clone) -> None:
    built = clone.build("cp312-x86_64", "cp313-aarch64")
    names = [f"wsqueue-{__version__}-{target}.pyz" for target in ("cp312-x86_64", "cp313-aarch64")]
    assert [file.name for file in built] == names
    for file, tag, machine in zip(
        built, ("cpython-312-x86_64", "cpython-313-aarch64"), (X86_64, AARCH64), strict=True
    ):
        with zipfile.ZipFile(file) as archive:
            libraries = [name for name in archive.namelist() if name.endswith(".so")]
            heads = {name: archive.read(name)[:20] for name in libraries}
        assert any(name == f"site-packages/msgspec/_core.{tag}-linux-gnu.so" for name in libraries)
        # An extension with the stable interface has no version in its name, but a processor all the same.
        assert {name for name in libraries if "cpython-" in name and tag not in name} == set()
        assert {int.from_bytes(head[18:20], "little") for head in heads.values()} == {machine}
        assert file.with_suffix(".cdx.json").exists()
    before = [file.stat().st_mtime_ns for file in built]
    assert clone.build("cp312-x86_64", "cp313-aarch64") == built
    assert [file.stat().st_mtime_ns for file in built] == before


def test_a_wheel_with_another_hash_is_refused(tmp_path: Path) -> None:
    clone = Clone(tmp_path)
    (clone.directory / "requirements" / "nodes.txt").write_text(f"mdurl==0.1.2 --hash=sha256:{'0' * 64}\n")
    told = subprocess.run(
        clone.command(), env=without_coverage(), capture_output=True, text=True, check=False, timeout=200
    )
    assert told.returncode == 1
    assert "DO NOT MATCH THE HASHES" in told.stderr
    assert re.search(r"\nThe zipapp for cp3\d+-\w+ has not been built\.\n$", told.stderr)
    assert not (clone.directory / "dist").exists()


@pytest.mark.parametrize("target", ["cp310-x86_64", "cp313-riscv64", "python3.13"])
def test_a_target_that_cannot_be_built_is_said_before_any_is(clone: Clone, target: str) -> None:
    command = clone.command("cp399-x86_64", target)
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    [line] = told.stderr.splitlines()
    assert line.startswith("The zipapp cannot be built: ")
    assert target in line


def test_every_command_is_there(zipapp: Path) -> None:
    assert run(zipapp, "--version") == f"wsqueue {__version__}\n"
    text = run(zipapp, "--help")
    for command in main.commands:
        assert command in text
        assert "Usage:" in run(zipapp, command, "--help")


def test_a_cluster_runs_from_it(zipapp: Path) -> None:
    output = run(zipapp, "local", "--port", "0", "--demo", "news", stdin="hello there\n")
    assert "14 checks, 0 failed\nhello there\n" in output


def test_a_bench_runs_from_it(zipapp: Path) -> None:
    assert "\nlost " in run(zipapp, "bench", "--duration", "0.2", "--warm-up", "0")
