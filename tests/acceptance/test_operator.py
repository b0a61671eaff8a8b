"""Each problem of a cluster is visible in the page, `top`, `doctor`, metrics and journal."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.certificates import Authority
from ..support.commands import run
from ..support.keys import psk_of
from ..support.processes import Cluster, Node, clean_environment, command
from ..support.waiting import wait_until


def page(node: Node, path: str) -> str:
    with urllib.request.urlopen(f"http://{node.address}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


class Sight:
    """Look at a cluster from all sides; `at` is the node whose page and journal are read."""

    def __init__(self, cluster: Cluster, at: Node) -> None:
        self._cluster, self._at = cluster, at

    def warnings(self, code: str) -> list[str]:
        """Return the warnings with a code on the page of the node, which shows the whole cluster."""
        found: list[dict[str, Any]] = json.loads(page(self._at, "/cluster.json"))["warnings"]
        return [f"{warning['text']} {warning['advice']}" for warning in found if warning["code"] == code]

    def metrics(self, name: str) -> dict[str, float]:
        """Return the samples of the node whose names begin with a text."""
        lines = page(self._at, "/metrics").splitlines()
        return {
            sample: float(value)
            for sample, _, value in (line.rpartition(" ") for line in lines if line.startswith(name))
        }

    def top(self) -> str:
        """Return the output of `top`, in one line."""
        shown = run("top", "--once", "--interval", "0.5", "--config", self._cluster.demo_file)
        return " ".join(shown.stdout.split())

    def doctor(self, *files: Path) -> str:
        """Return the problems and warnings that `doctor` finds, in one line."""
        shown = run("doctor", "--json", *(files or ("--config", self._cluster.demo_file))).stdout
        bad = [finding for finding in json.loads(shown)["findings"] if finding["state"] != "ok"]
        return " ".join(f"{finding['text']} {finding['advice']}" for finding in bad)

    def log(self, event: str) -> str:
        """Return the latest line of the node's journal about an event."""
        lines = [line for line in self._at.log.splitlines() if f" {event} " in line]
        assert lines, f"{event}: {self._at.log}"
        return lines[-1]


@pytest.fixture
def watched(cluster: Cluster) -> Cluster:
    """Return a cluster of two consumers and two producers, whose first producer knows all nodes."""
    cluster.start(2, 2, retention={"mode": "memory"})
    know(cluster)
    return cluster


def know(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.settings["monitoring.producers"] = [producer.address for producer in cluster.producers]
        node.settings["monitoring.consumers"] = [consumer.address for consumer in cluster.consumers]
        node.write()
        node.signal(signal.SIGHUP)
        node.wait_logged("reloaded")


def test_a_link_is_down(watched: Cluster) -> None:
    producer, consumer = watched.producers[0], watched.consumers[1]
    sight = Sight(watched, producer)
    consumer.terminate()
    wait_until(lambda: len(sight.warnings("link_down")) == 2, "both producers warn")
    (unreachable,) = wait_until(lambda: sight.warnings("node_unreachable"), "the consumer does not answer")
    assert f"consumer {consumer.address} does not answer: Connection refused" in unreachable
    assert f"No link to consumer {consumer.address}" in sight.warnings("link_down")[0]
    assert "See whether it runs" in sight.warnings("link_down")[0]
    up = sight.metrics("wsqueue_link_up")
    assert [value for name, value in up.items() if consumer.address in name] == [0]
    assert f"No link to consumer {consumer.address}" in sight.top()
    assert f"{consumer.address}" in sight.doctor()
    assert "Connection refused" in sight.doctor()
    assert consumer.address in sight.log("link down")
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        page(producer, "/readyz")
    caught.value.close()


def test_a_subscriber_is_slow(watched: Cluster) -> None:
    subscriber = subprocess.Popen(
        command("subscribe", "--config", watched.demo_file, "news"),
        stdout=subprocess.DEVNULL,
        env=clean_environment(),
    )
    try:
        wait_until(
            lambda: any(
                sight.metrics('wsqueue_connections{protocol="v2",role="subscriber",state="open"}')
                for sight in (Sight(watched, consumer) for consumer in watched.consumers)
            ),
            "it has subscribed",
        )
        subscriber.send_signal(signal.SIGSTOP)
        lines = ("x" * 65_536 + "\n").encode() * 300
        assert run("publish", "--config", watched.demo_file, "news", stdin=lines).code == 0
        sight = Sight(watched, watched.producers[0])
        (warning,) = wait_until(lambda: sight.warnings("subscriber_slow"), "the consumer warns")
        assert "1 subscriber reads slower than its topics grow: 127.0.0.1:" in warning
        assert "messages behind" in warning
        assert "subscriber reads slower" in sight.top()
        assert "subscriber reads slower" in sight.doctor()
        slow = next(node for node in watched.consumers if f"{node.address}:" in warning)
        at = Sight(watched, slow)
        assert at.metrics("wsqueue_slow_subscribers") == {"wsqueue_slow_subscribers": 1}
        assert at.metrics("wsqueue_subscribers_fell_behind_total").popitem()[1] >= 1
    finally:
        subscriber.send_signal(signal.SIGCONT)
        subscriber.terminate()
        subscriber.wait()
    wait_until(lambda: not sight.warnings("subscriber_slow"), "the warning goes with the subscriber")


def test_the_key_differs_on_one_host(watched: Cluster) -> None:
    stranger, consumer = watched.producers[1], watched.consumers[0]
    other = watched.directory / "other-psk"
    other.touch(mode=0o600)
    other.write_text(psk_of("others") + "\n")
    stranger.terminate()
    stranger.settings["psk_file"] = "other-psk"
    stranger.write()
    stranger.start()
    stranger.wait_logged("link cannot open", 2)
    sight = Sight(watched, consumer)
    (refused,) = wait_until(lambda: sight.warnings("hello_refused")[:1], "the consumer warns")
    assert "A peer with another pre-shared key was refused" in refused
    assert "Compare the fingerprints" in refused
    (unreachable,) = wait_until(lambda: sight.warnings("node_unreachable"), "it cannot be asked")
    assert f"producer {stranger.address} does not answer: it has another pre-shared key" in unreachable
    assert sight.metrics('wsqueue_hellos_refused_total{reason="wrong_answer"}').popitem()[1] >= 1
    assert "another pre-shared key" in sight.top()
    assert "pre-shared key" in sight.doctor()
    assert "4401" in sight.log("hello refused")
    mine, its = (
        json.loads(run("doctor", "--json", node.file).stdout)["findings"] for node in (consumer, stranger)
    )
    assert fingerprints(mine) != fingerprints(its)
    assert json.loads(page(consumer, "/status.json"))["psk_fingerprints"] == fingerprints(mine)


def fingerprints(findings: list[dict[str, str]]) -> list[str]:
    return re.findall(r"\b[0-9a-f]{8}\b", " ".join(finding["text"] for finding in findings))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MiB where the first consumer has its log."""
    directory = tmp_path / "logs-1"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(directory)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_the_disk_is_full(small_disk: Path, cluster: Cluster) -> None:
    cluster.start(1, 1, retention={"mode": "sqlite", "max_bytes": 1 << 20})
    know(cluster)
    sight = Sight(cluster, cluster.consumers[0])
    assert run("publish", "--config", cluster.demo_file, "news", "before").code == 0
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    (nearly,) = wait_until(lambda: sight.warnings("log_nearly_full"), "the consumer warns")
    assert "The file system of the log has" in nearly
    # More than the log's files may have room for inside.
    refused = run("publish", "--config", cluster.demo_file, "news", stdin=b"x" * 700_000 + b"\n")
    assert refused.code == 1
    assert "the disk is full" in refused.stderr
    (failing,) = wait_until(lambda: sight.warnings("log_failing"), "the consumer warns")
    assert "Messages cannot be stored, and are refused: the disk is full" in failing
    assert "Make room" in failing
    assert sight.metrics("wsqueue_log_failing") == {"wsqueue_log_failing": 1}
    assert sight.metrics('wsqueue_batches_refused_total{code="full"}').popitem()[1] >= 1
    assert "cannot be stored" in sight.top()
    assert "cannot be stored" in sight.doctor()
    assert "the disk is full" in sight.log("messages refused")
    (small_disk / "filler").unlink()
    assert run("publish", "--config", cluster.demo_file, "news", "after").code == 0
    wait_until(lambda: not sight.warnings("log_failing"), "the warning goes")


def test_a_certificate_ends_tomorrow(cluster: Cluster) -> None:
    tls = Authority(cluster.directory).issue("node", days=1)
    consumer = cluster.add_consumer(
        **{"tls.certificate": tls.certificate, "tls.key": tls.key, "tls.ca": tls.ca}
    )
    producer = cluster.add_producer()
    consumer.start()
    producer.start()
    producer.wait_logged("link up")
    cluster.write_demo()
    know(cluster)
    sight = Sight(cluster, consumer)
    (warning,) = wait_until(lambda: sight.warnings("certificate_expires"), "the consumer warns")
    assert "node.pem: a certificate in it expires on" in warning
    assert "rotate_tls.yml" in warning
    assert "expires on" in sight.top()
    assert "node.pem: a certificate in it expires on " in sight.doctor()
    assert "node.pem" in sight.doctor(consumer.file)
    (ends,) = sight.metrics("wsqueue_certificate_expiry_timestamp_seconds").values()
    assert ends > 1.7e9
    assert "node.pem" in sight.log("unwise configuration")
