"""The container of `packaging/container` is built, and its file system, read-only, runs a node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..lab.cluster import needs_time
from ..support.paths import ROOT
from ..support.ports import free_port
from ..support.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    needs_time,
    pytest.mark.skipif(
        not (shutil.which("buildah") and shutil.which("mmdebstrap")), reason="needs buildah and mmdebstrap"
    ),
]

DEBIAN, TARGET = "trixie", "cp313-x86_64"
USER = "10001"

IN_CONTAINER = r"""
mount --bind "$1" "$1"
mount --bind "$2" "$1/etc/wsqueue"
mount -t proc proc "$1/proc"
mount -o remount,bind,ro "$1"
mount -o remount,bind,ro "$1/etc/wsqueue"
shift 2
exec "$@"
"""
"""Runs a command in a mount namespace in which the image, and its configuration, are read-only."""


class Image:
    """The image, mounted.

    Attributes:
        root: Its file system.
    """

    def __init__(self, storage: Path) -> None:
        self._options = ["--storage-driver=vfs", f"--root={storage}/root", f"--runroot={storage}/run"]
        base = storage / "base.tar"
        run("mmdebstrap", "--variant=apt", "--include=python3", DEBIAN, base)
        started = self.buildah("from", "--name=base", "scratch")
        self.buildah("add", started, base, "/")
        self.buildah("commit", "base", "localhost/base")
        zipapp = run(sys.executable, "-I", ROOT / "scripts" / "zipapp", TARGET).strip()
        context = storage / "context"
        context.mkdir()
        shutil.copy(ROOT / zipapp, context)
        file = ROOT / "packaging" / "container" / "Containerfile"
        self.buildah(
            *("bud", "--isolation=chroot", "--format=docker", "--build-arg=base=localhost/base"),
            *("-t", "wsqueue", "-f", file, context),
        )
        self.buildah("from", "--name=node", "localhost/wsqueue")
        self.root = self.buildah("mount", "node")
        (Path(self.root) / "etc" / "wsqueue").mkdir(exist_ok=True)

    def buildah(self, command: str, *arguments: str | Path) -> str:
        return run("buildah", *self._options, command, *arguments).strip()

    def said(self, name: str) -> str:
        """Return a field of the image's configuration."""
        return self.buildah("inspect", "--type=image", f"--format={{{{.Docker.Config.{name}}}}}", "wsqueue")

    def command(self, etc: Path, *arguments: str) -> list[str | Path]:
        """Return a command that runs one in the image, as its user."""
        inside = ["chroot", f"--userspec={USER}:{USER}", self.root, "env", "-i", *PATHS, *arguments]
        return ["unshare", "--mount", "sh", "-ec", IN_CONTAINER, "sh", self.root, etc, *inside]


PATHS = (
    "PATH=/usr/bin:/bin",
    "PYTHONPATH=/opt/wsqueue/site-packages",
    "PYTHONSAFEPATH=1",
)


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    made = Image(tmp_path_factory.mktemp("storage"))
    yield made
    made.buildah("rm", "--all")


def test_a_node_serves_and_drains(image: Image, tmp_path: Path) -> None:
    assert image.said("User") == f"{USER}:{USER}"
    assert image.said("StopSignal") == "SIGTERM"
    assert [pair for pair in PATHS if pair in image.said("Env")] == list(PATHS[1:])
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "psk").write_text("k7Vv2mQp9sXz4tRb8nLw3cHy6dJf1gAe")
    (etc / "psk").chmod(0o440)
    os.chown(etc / "psk", 0, int(USER))
    (etc / "consumer.toml").write_text(
        'role = "consumer"\npsk_file = "psk"\n'
        f'listen = ["127.0.0.1:{free_port()}"]\nmonitoring.listen = ["127.0.0.1:9100"]\n'
    )
    tmp_path.chmod(0o755)
    node = image.command(etc, "python3", "-m", "wsqueue", "consumer", "/etc/wsqueue/consumer.toml")
    log = tmp_path / "log"
    with log.open("wb") as stream, subprocess.Popen(node, stderr=stream) as process:
        try:
            wait_until(lambda: "started role=consumer" in log.read_text(), "the node starts", 60)
            check = image.said("Healthcheck.Test").removeprefix("[CMD python3 -c ").removesuffix("]")
            run(*image.command(etc, "python3", "-c", check))
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
    (etc / "psk").chmod(0o444)
    refused = subprocess.run(node, capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert "all users may read the key" in refused.stderr
