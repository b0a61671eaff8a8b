"""The packages of an installation: the client alone, the command line too, or nodes."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ..support.classic_peer import topic_of
from ..support.commands import SECONDS
from ..support.documents import code_blocks
from ..support.environment import without_coverage
from ..support.nats_servers import NatsServers
from ..support.paths import ROOT
from ..support.processes import Cluster, clean_environment
from ..support.releases import released

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(extra: str) -> Iterator[str]:
    """Yield the names of all packages that an installation with an extra brings."""
    texts = list(PROJECT["dependencies"])
    if extra:
        texts += PROJECT["optional-dependencies"][extra]
    found = set[str]()
    while texts:
        requirement = Requirement(texts.pop())
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        if requirement.name == "wsqueue":
            texts += [text for more in requirement.extras for text in PROJECT["optional-dependencies"][more]]
        elif requirement.name not in found:
            found.add(requirement.name)
            texts += importlib.metadata.requires(requirement.name) or []
    yield from found


def install(directory: Path, wheel: Path, extra: str) -> Path:
    """Make an environment with the wheel and its requirements, and return its directory of programs."""
    venv.create(directory, symlinks=True)
    packages = directory / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        (module, function) = re.findall(r"wsqueue = (\S+):(\S+)", archive.read(entry_points).decode())[0]
    for name in requirements(extra):
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:
                place = packages / file
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.exists():
                    place.symlink_to(file.locate())
    # As pip writes it.
    program = directory / "bin" / "wsqueue"
    program.write_text(
        f"#!{directory}/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    )
    program.chmod(0o755)
    return directory / "bin"


def build(kind: str, directory: Path) -> Path:
    """Build the wheel or the sdist of the sources, without any network."""
    command: list[str | Path] = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", directory]
    subprocess.run(command, check=True, cwd=ROOT, env=without_coverage(), capture_output=True)
    (built,) = directory.glob("wsqueue-*")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released("*.whl") or build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return released("wsqueue-[0-9]*.tar.gz") or build("sdist", tmp_path_factory.mktemp("sdist"))


def run(command: Sequence[str | Path], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=clean_environment(),
    )


def run_program_of_the_readme(programs: Path, directory: Path, cluster: Cluster) -> None:
    """Run it with the Python of an environment, in a directory that is empty but for that."""
    (program,) = code_blocks(ROOT / "README.md", "python")
    (directory / "hello.py").write_text(program)
    (directory / "cluster").symlink_to(cluster.directory)
    done = run([programs / "python", "hello.py"], directory)
    assert (done.stdout, done.stderr) == ("news hello\n", "")


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_pip_installs_the_client_without_a_compiler(
    tmp_path: Path, standing_cluster: Cluster, kind: str, request: pytest.FixtureRequest
) -> None:
    package = request.getfixturevalue(kind)
    venv.create(tmp_path / "client", with_pip=True, symlinks=True)
    programs = tmp_path / "client" / "bin"
    # The sdist itself may be built, which needs Python only.
    binary = ",".join(["hatchling", *requirements("")])
    command: list[str | Path] = [
        programs / "python",
        "-I",
        "-m",
        "pip",
        "install",
        "--only-binary",
        binary,
        package,
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=clean_environment() | {"CC": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    run_program_of_the_readme(programs, tmp_path, standing_cluster)


def test_the_client_alone_runs_the_program_of_the_readme(
    tmp_path: Path, wheel: Path, standing_cluster: Cluster
) -> None:
    programs = install(tmp_path / "client", wheel, "")
    run_program_of_the_readme(programs, tmp_path, standing_cluster)
    done = run([programs / "python", "-c", "import wsqueue.sync, uvloop"], tmp_path)
    assert "No module named 'uvloop'" in done.stderr
    done = run([programs / "wsqueue", "publish", "news", "x"], tmp_path)
    assert (done.returncode, done.stderr) == (
        1,
        "Error: the command line needs click, which pip install 'wsqueue[cli]' installs.\n",
    )


def test_the_command_line_runs_on_the_loop_of_asyncio(
    tmp_path: Path, wheel: Path, standing_cluster: Cluster, topic: str
) -> None:
    programs = install(tmp_path / "cli", wheel, "cli")
    options = [f"--config={standing_cluster.demo_file}", topic]
    assert run([programs / "wsqueue", "publish", *options, "hello"], tmp_path).returncode == 0
    done = run([programs / "wsqueue", "subscribe", "--from=earliest", "--no-follow", *options], tmp_path)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    done = run([programs / "wsqueue", "consumer", standing_cluster.consumers[0].file], tmp_path)
    assert done.stderr == "Error: a node needs uvloop, which pip install 'wsqueue[node]' installs\n"
    assert done.returncode == 1


@pytest.mark.parametrize("extra", ["node", "jetstream"])
def test_nodes_run(tmp_path: Path, wheel: Path, extra: str) -> None:
    programs = install(tmp_path / "node", wheel, extra)
    done = subprocess.run(
        [programs / "wsqueue", "local", "--port=0", "--directory", tmp_path / "nodes", "--demo", "news"],
        input="hello\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "hello" in done.stdout


@pytest.fixture
def sharing_cluster(cluster: Cluster, tmp_path: Path) -> Iterator[Cluster]:
    """Return a cluster whose two consumers share a log."""
    servers = NatsServers(tmp_path / "nats")
    try:
        servers.start(0)
        asyncio.run(servers.healthy())
        table = {f"jetstream.{key}": value for key, value in servers.settings.items()}
        cluster.start(2, 2, retention={"mode": "jetstream", "jetstream.streams": 2} | table)
        yield cluster
    finally:
        cluster.stop()
        servers.stop()


@contextmanager
def both_clients(
    tmp_path: Path, wheel: Path, *arguments: str | Path, launcher: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """Run the program that uses both clients, without uvloop, and always end it."""
    programs = install(tmp_path / "client", wheel, "")
    files = [Path(__file__).with_name(name) for name in (launcher, "on_asyncio.py") if name]
    with subprocess.Popen(
        [programs / "python", *files, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=clean_environment(),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_both_clients_do_all_on_the_loop_of_asyncio(
    tmp_path: Path, wheel: Path, sharing_cluster: Cluster
) -> None:
    """They also go on when nodes are lost: the consumer of a topic, and each producer."""
    consumers, producers = sharing_cluster.consumers, sharing_cluster.producers
    with both_clients(tmp_path, wheel, sharing_cluster.demo_file, topic_of(0, len(consumers))) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "lost\n"
        consumers[0].kill()
        producers[0].kill()
        print(file=program.stdin, flush=True)
        assert program.stdout.readline() == "lost\n"
        producers[0].start()
        producers[1].kill()
        print(file=program.stdin, flush=True)
        assert program.stdout.read() == "all done\n"


def test_both_clients_need_nothing_that_windows_lacks(
    tmp_path: Path, wheel: Path, standing_cluster: Cluster
) -> None:
    with both_clients(tmp_path, wheel, standing_cluster.demo_file, launcher="as_on_windows.py") as program:
        assert program.communicate(timeout=SECONDS)[0] == "all done\n"
