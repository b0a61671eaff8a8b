"""The inventory changes: nothing is lost unasked, and a dead host does not stop the others.

The tests build on each other, in the order of this file. Those that deploy again run only with
WSQUEUE_WHOLE_LAB=1 in the environment.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from wsqueue.protocol.routing import topic_hash

from ..support.waiting import wait_until
from .cluster import (
    HOSTS,
    KEPT,
    NEW,
    OLD,
    VERIFIED,
    WAIT_SECONDS,
    Cluster,
    assert_nothing_changed,
    needs_time,
)
from .load import load

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

PREFLIGHT = "ansible/playbooks/preflight.yml"
MOVE = ("-e", "wsqueue_move_topics=true")
RETIRE = ("-e", '{"wsqueue_retired": ["consumer-10003"]}')


def refused(cluster: Cluster, inventory: Path, *arguments: str) -> str:
    """Return the output of a preflight that fails, in one line; no host is changed."""
    result = cluster.try_to_play(PREFLIGHT, *arguments, inventory=inventory)
    assert result.returncode != 0, result.stdout[-10_000:]
    assert "\nchanged: " not in result.stdout
    return " ".join(result.stdout.split())


# Publishes a message, however long it waits.
PUBLISHER = """
import asyncio, sys
import wsqueue
async def main():
    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        await client.publish(sys.argv[1], "it waits")
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def administrator(deployed: Cluster) -> Iterator[dict[str, str]]:
    """Return the variables with which Ansible becomes root as a user who must give a password."""
    password = secrets.token_urlsafe(12)
    for host in HOSTS:
        deployed.lab.ssh(
            host,
            "useradd --create-home --groups sudo admin && chpasswd"
            " && install -D -o admin -m 600 /root/.ssh/authorized_keys /home/admin/.ssh/authorized_keys",
            stdin=f"admin:{password}\n",
        )
    yield {"ansible_user": "admin", "ansible_become_password": password}
    for host in HOSTS:
        # Ansible keeps a connection open; a host that was replaced has no such user.
        deployed.lab.ssh(
            host,
            "! id admin || { loginctl terminate-user admin; sleep 1; userdel --force --remove admin; }",
        )


def test_topics_do_not_move_unasked(deployed: Cluster, administrator: dict[str, str]) -> None:
    more = deployed.inventory("more", consumer2__wsqueue_consumer_ports=[10001, 10005], **administrator)
    told = refused(deployed, more)
    assert "75% of the topics move to another consumer" in told
    # The topics that the tests publish, one at each consumer, and more.
    assert "kept messages of" in told
    assert "at consumer-10001 of consumer2" in told
    output = deployed.try_to_play(PREFLIGHT, *MOVE, inventory=more)
    assert output.returncode == 0, output.stdout[-10_000:]
    assert "WARNING: the list of consumers changes" in output.stdout


def test_tls_and_the_release_do_not_change_together(deployed: Cluster, administrator: dict[str, str]) -> None:
    version = deployed.lab.ssh("demo1", "wsqueue --version").split()[-1]
    other = deployed.zipapps[NEW if version == OLD else OLD]
    plain = deployed.inventory("plain", wsqueue_tls=False, wsqueue_plain=True, **administrator)
    assert "wsqueue_tls and the release change together" in refused(
        deployed, plain, "-e", f"wsqueue_release_zipapp={other}"
    )


@needs_time
def test_instances_that_the_inventory_lacks_stay_unless_it_says_so(deployed: Cluster) -> None:
    # It belongs to consumer2 as number 3 of 3, and to consumer1 as number 1 of 2.
    moves = next(
        topic
        for topic in map("moves/{}".format, range(99))
        if deployed.consumer_of(topic)[0] == "consumer2" and topic_hash(topic) % 2 == 0
    )
    deployed.lab.ssh("demo1", f"wsqueue publish {moves} 'it moves'")
    fewer = deployed.inventory("fewer", consumer1__wsqueue_consumer_ports=[10001])
    told = refused(deployed, fewer)
    assert "consumer1 has consumer-10003, which this inventory does not have" in told
    # Also topics move.
    told = refused(deployed, fewer, *RETIRE)
    assert "67% of the topics move to another consumer" in told
    assert "at consumer-10003 of consumer1" in told

    output = deployed.try_to_play("site.yml", *RETIRE, *MOVE, inventory=fewer).stdout
    assert VERIFIED.search(output), output[-10_000:]
    assert deployed.lab.ssh("consumer1", "ls /etc/wsqueue/consumer-*") == "/etc/wsqueue/consumer-10001.toml"
    assert deployed.property(("consumer", "consumer1", 10003), "ActiveState") == "inactive"
    kept = deployed.lab.ssh("consumer1", "ls /var/lib/wsqueue/consumer-10003/archive.sqlite")
    assert kept.endswith("archive.sqlite")

    release = "PYTHONPATH=/opt/wsqueue/current/site-packages python3 -m wsqueue"
    found = deployed.lab.ssh("consumer2", f"{release} doctor /etc/wsqueue/consumer-10001.toml || true")
    assert "that belong to other consumers, as number 2 of 2 consumers" in found

    # With the instance, its topics come back.
    assert VERIFIED.search(deployed.play("site.yml", *MOVE))
    kept = deployed.lab.ssh("demo1", f"wsqueue subscribe --from earliest --no-follow {' '.join(KEPT)}")
    assert sorted(kept.splitlines()) == [f"{topic}: this is {topic}" for topic in KEPT]


@needs_time
def test_a_key_of_the_nodes_that_the_inventory_gives_up_goes_from_the_hosts(deployed: Cluster) -> None:
    version = deployed.lab.ssh("demo1", "wsqueue --version").split()[-1]
    release = ("-e", f"wsqueue_release_zipapp={deployed.zipapps[version]}")
    deployed.inventory("good", wsqueue_node_psk="", wsqueue_one_key_for_all=True)
    assert VERIFIED.search(deployed.play("ansible/playbooks/rotate_psk.yml", *release))
    for host in HOSTS[:3]:
        assert deployed.lab.try_to("ssh", host, "ls /etc/wsqueue/node_psk").returncode != 0
        assert deployed.found(host, deployed.node_psk) == []


@needs_time
def test_nodes_get_their_first_key_with_an_update_under_load(deployed: Cluster) -> None:
    version = deployed.lab.ssh("demo1", "wsqueue --version").split()[-1]
    release = ("-e", f"wsqueue_release_zipapp={deployed.zipapps[NEW if version == OLD else OLD]}")
    since = deployed.lab.ssh("producer1", "sleep 1; date +%s")
    inventory = deployed.inventory("good")
    told = refused(deployed, inventory, *release, "--limit", "consumer1")
    assert "consumer2, producer1 would refuse the other nodes, which get a key of their own" in told
    with load(deployed.lab) as result:
        assert VERIFIED.search(deployed.play("site.yml", *release))
    assert result["received"] == result["published"]
    assert result["duplicates"] == 0
    for host in HOSTS[:3]:
        assert deployed.lab.ssh(host, "cat /etc/wsqueue/node_psk") == deployed.node_psk
    # No link was refused on the way; the demo tests try a wrong key at each endpoint, once.
    log = deployed.lab.ssh("consumer2", f"journalctl --no-pager -o cat -u 'wsqueue-*' --since=@{since}")
    assert len(re.findall("^hello refused ", log, re.MULTILINE)) == 2
    # So it stays.
    output = deployed.play("site.yml", *release)
    assert VERIFIED.search(output)
    assert_nothing_changed(output, HOSTS)


@needs_time
def test_a_dead_consumer_is_left_out_and_replaced(deployed: Cluster) -> None:
    lab = deployed.lab
    topic = KEPT[[deployed.consumer_of(topic) for topic in KEPT].index(("consumer2", 10001))]
    os.kill(lab.nspawn("consumer2"), signal.SIGKILL)
    wait_until(lambda: "broken" in lab.run("status"), "consumer2 is broken", WAIT_SECONDS)
    version = lab.ssh("demo1", "wsqueue --version").split()[-1]
    version = NEW if version == OLD else OLD
    release = ("-e", f"wsqueue_release_zipapp={deployed.zipapps[version]}")

    dead = deployed.inventory("dead", dead=["consumer2"])
    output = deployed.try_to_play("site.yml", *release, inventory=dead).stdout
    assert VERIFIED.search(output), output[-10_000:]
    for node in (("consumer", "consumer1", 10001), ("producer", "producer1", 10002)):
        assert deployed.running_version(node) == version
    # The other topics have all that they need; that of the dead consumer waits in a producer.
    # The real path, which stays when the link moves.
    release_there = lab.ssh("demo1", "readlink -f /opt/wsqueue/current")
    lab.ssh("demo1", "cat >/tmp/publisher.py", stdin=PUBLISHER)
    command = f"PYTHONPATH={release_there}/site-packages exec python3 /tmp/publisher.py {topic}"
    with lab.running("demo1", command) as waiting:
        # A fresh host with the same name and address, at the same place of the list.
        lab.up()
        deployed.play("ansible/playbooks/ca.yml")
        assert VERIFIED.search(deployed.play("site.yml", *release))
        shown, _ = waiting.communicate(timeout=60)
        assert waiting.returncode == 0, shown
    kept = lab.ssh("demo1", f"wsqueue subscribe --from earliest --no-follow {' '.join(KEPT)}")
    others = [f"{other}: this is {other}" for other in KEPT if other != topic]
    assert sorted(kept.splitlines()) == sorted([*others, f"{topic}: it waits"])
