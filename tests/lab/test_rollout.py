"""site.yml on hosts with real systemd: it refuses, deploys, keeps secrets, rotates keys and goes back.

The tests build on each other, in the order of this file.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import secrets
import shutil
import ssl
import tarfile
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from ..support.waiting import wait_until
from .cluster import (
    CONSUMERS,
    HOSTS,
    KEPT,
    NEW,
    NODES,
    OLD,
    SUITES,
    VERIFIED,
    WAIT_SECONDS,
    Cluster,
    assert_nothing_changed,
    needs_time,
    recap,
)
from .dropouts import Step, play_until_a_host_drops_out
from .load import load

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(1500)]

ROTATE_PSK = "ansible/playbooks/rotate_psk.yml"
NOTED = {"de5b426a63be47a7b6ac3eaac82e2f6f": "stopping", "39f53479d3a045ac8e11786248231fbf": "started"}
"""Events of units by the ids with which systemd writes them into the journal."""

HALF_ROTATED = Step(ROTATE_PSK, "Reload the consumers", 4, "consumer2")
"""A host before this one uses the new key already."""

WATCHDOG = "[Service]\nWatchdogSec=10\n"
"""Ends a node sooner after it hangs than the deployed two minutes."""


def nothing_is_there(cluster: Cluster) -> bool:
    listed = "ls -d /opt/wsqueue /etc/wsqueue /etc/systemd/system/wsqueue* 2>/dev/null || true"
    return [cluster.lab.ssh(host, listed) for host in HOSTS] == [""] * len(HOSTS)


@needs_time
def test_a_check_of_fresh_hosts(cluster: Cluster) -> None:
    assert_nothing_changed(cluster.play("site.yml", "--check", "--diff"), HOSTS)
    assert nothing_is_there(cluster)


@needs_time
def test_wrong_inventories_are_refused_before_anything_is_changed(cluster: Cluster) -> None:
    other = cluster.directory / "wsqueue-0.1.0-cp399-x86_64.pyz"
    shutil.copy(cluster.zipapp(OLD, "consumer1"), other)
    wrong = {
        "is the original nodes' default": cluster.inventory("key", wsqueue_psk="pre-shared-key"),
        "wsqueue_psk would be refused by the nodes": cluster.inventory("weak", wsqueue_psk="a secret"),
        "wsqueue_node_psk is not set, so every client could": cluster.inventory("nodes", wsqueue_node_psk=""),
        "Nothing would protect the messages at": cluster.inventory("plain", wsqueue_tls=False),
        "has no host in the group consumers": cluster.inventory("none", consumers=[]),
        "these are used twice": cluster.inventory("twice", consumer2__wsqueue_consumer_ports=[10001, 10001]),
        "is not valid for '192.0.2.1'": cluster.inventory("address", consumer2__wsqueue_address="192.0.2.1"),
        "holds other code than this clone, so consumer1 would not": cluster.inventory(
            "sources",
            wsqueue_release_zipapp=str(cluster.zipapps[NEW]),
            wsqueue_release_other_sources=False,
        ),
        "cp399-x86_64.pyz is not for": cluster.inventory("python", wsqueue_release_zipapp=str(other)),
        "producers of producer1 could not use their configuration: limits.max_held_bytes": cluster.inventory(
            "limits", producer1__wsqueue_producer_limits={"max_held_bytes": -1}
        ),
    }
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda path: cluster.try_to_play("site.yml", inventory=path), wrong.values()))
    for sentence, result in zip(wrong, results, strict=True):
        shown = " ".join(result.stdout.split())
        assert result.returncode != 0, shown
        assert sentence in shown
        assert "Traceback" not in shown
        # One task fails, though it may on several hosts.
        failures = re.findall(r"^TASK \[.*\] \**\n(?:(?!TASK|PLAY).*\n)*?fatal:", result.stdout, re.MULTILINE)
        assert len(failures) == 1, result.stdout
        assert all(one["changed"] == 0 for one in recap(result.stdout).values()), result.stdout
    assert nothing_is_there(cluster)


def test_a_second_run_and_a_check_change_nothing(deployed: Cluster) -> None:
    # Both at once, to save time: neither has anything to do. The check is of one host of each kind.
    with ThreadPoolExecutor(2) as pool:
        checked = pool.submit(deployed.play, "site.yml", "--check", "--diff", "--limit", ",".join(HOSTS[1:]))
        output = deployed.play("site.yml")
    assert VERIFIED.search(output)
    assert_nothing_changed(output, HOSTS)
    assert_nothing_changed(checked.result(), HOSTS[1:])


@pytest.mark.parametrize(("host", "suite"), SUITES.items())
def test_a_host_of_another_distribution_runs_a_release_of_its_own(
    deployed: Cluster, host: str, suite: str
) -> None:
    if suite in deployed.missing:
        pytest.skip(deployed.missing[suite])
    assert deployed.lab.ssh(host, ". /etc/os-release; echo $VERSION_CODENAME") == suite
    assert deployed.targets[host] != deployed.targets["consumer1"]
    node = next(node for node in NODES if node[1] == host)
    pid = deployed.property(node, "MainPID")
    loaded = deployed.lab.ssh(host, f"grep -oE 'cpython-3[0-9]+-' /proc/{pid}/maps | sort -u").split()
    python = deployed.targets[host].removeprefix("cp").partition("-")[0]
    assert loaded == [f"cpython-{python}-"]


def test_the_key_is_nowhere(deployed: Cluster) -> None:
    modes = {"psk": "root wsqueue 640", "tls/ca.pem": "root root 644"}
    node_modes = dict.fromkeys(("node_psk", "client.billing", "tls/node.pem"), "root wsqueue-node 640")
    for host in HOSTS:
        shown = deployed.lab.ssh(
            host, "shopt -s nullglob; cd /etc/wsqueue; stat -c '%n %U %G %a' *psk client.* tls/*"
        ).splitlines()
        expected = modes if host == "demo1" else modes | node_modes
        assert dict(line.split(maxsplit=1) for line in shown) == expected
        assert deployed.lab.ssh(host, "cat /etc/wsqueue/psk") == deployed.psk
        assert deployed.found(host, *deployed.secrets) == []
    state = deployed.lab.ssh("consumer1", "stat -c %a /var/lib/private /var/lib/wsqueue/consumer-10001/")
    assert state.split() == ["700", "700"]
    # Nor did Ansible print it, which has printed much.
    assert_not_printed(deployed, deployed.secrets)
    assert max(len(output) for output in deployed.outputs) > 50_000


def assert_not_printed(cluster: Cluster, values: list[str]) -> None:
    assert not [output for output in cluster.outputs for value in values if value in output]


def test_what_looks_for_the_key_would_find_it(deployed: Cluster) -> None:
    planted = secrets.token_urlsafe(32)
    script = f"""
        echo 'the value is {planted}' >/tmp/planted
        chmod 644 /tmp/planted
        echo {planted} | systemd-cat
        systemd-run --quiet --unit planted1 --setenv=KEY={planted} sleep 60
        systemd-run --quiet --unit planted2 sh -c 'sleep 60; : {planted}'
        journalctl --sync
        """
    deployed.lab.ssh("consumer1", "bash -eu", stdin=script)
    try:
        found = deployed.found("consumer1", planted)
        assert {line.split()[0] for line in found} == {"environ", "cmdline", "file", "journal"}
        assert "file /tmp/planted" in found
    finally:
        deployed.lab.ssh("consumer1", "systemctl stop planted1 planted2; rm /tmp/planted")


def test_units_and_journal(deployed: Cluster) -> None:
    for node in (NODES[0], NODES[-1]):
        kind, host, port = node
        shown = deployed.lab.ssh(host, f"systemd-analyze security --no-pager wsqueue-{kind}@{port}")
        level = re.search(r"Overall exposure level for .*: ([0-9.]+)", shown)
        assert level is not None
        assert float(level[1]) <= 1.5, shown
        lines = deployed.lab.ssh(host, f"journalctl --no-pager -o json -u wsqueue-{kind}@{port}").splitlines()
        priorities = {
            entry["MESSAGE"].split(" key=")[0]: entry["PRIORITY"] for entry in map(json.loads, lines)
        }
        assert {value for key, value in priorities.items() if key.startswith("started ")} == {"6"}
        # The demo tests try a wrong key.
        assert {value for key, value in priorities.items() if key.startswith("hello refused ")} == {"4"}
    assert re.fullmatch(r"3 of 3 links up, \d+ connections", deployed.property(NODES[-1], "StatusText"))
    assert re.fullmatch(
        r"topics with subscribers: \d+ classic, \d+ v2, \d+ connections",
        deployed.property(NODES[0], "StatusText"),
    )


def test_hosts_have_the_units_of_their_nodes(deployed: Cluster) -> None:
    shared = ["wsqueue-.service.d/node.conf", "wsqueue.target"]
    for host, own in {"consumer2": ["consumer"], "producer1": ["producer"], "demo1": []}.items():
        found = deployed.lab.ssh(host, "cd /etc/systemd/system && find wsqueue* -name '*.*' -type f || true")
        units = [line for line in found.splitlines() if not line.endswith("/memory.conf")]
        assert sorted(units) == sorted([f"wsqueue-{kind}@.service" for kind in own] + (shared if own else []))


def test_the_pages_are_for_the_host_itself_and_show_the_cluster(deployed: Cluster) -> None:
    for _, host, port in (NODES[0], NODES[-1]):
        metrics = deployed.page(host, port, "/metrics")
        # Also those of the process, though the unit hides the machine from it.
        for name in ("wsqueue_ready 1.0", "wsqueue_build_info{", "process_open_fds ", "process_max_fds "):
            assert f"\n{name}" in metrics
        status = json.loads(deployed.page(host, port, "/status.json"))
        assert (status["not_ready"], status["version"]) == ("", OLD)
        nodes = wait_until(
            functools.partial(deployed.nodes_seen_by, host, port), "all nodes answer", WAIT_SECONDS
        )
        assert [(node["role"], node["address"]) for node in nodes] == [
            (kind, f"wss://{deployed.lab.address(its)}:{at}") for kind, its, at in NODES
        ]
    with pytest.raises(urllib.error.HTTPError) as refused:
        deployed.open("consumer1", 10001, "/metrics")
    refused.value.close()
    assert refused.value.code == 403


def test_a_member_of_the_group_uses_the_demo(deployed: Cluster) -> None:
    deployed.lab.ssh("demo1", "useradd --create-home --groups wsqueue alice && useradd --create-home mallory")
    told = deployed.lab.try_to("ssh", "demo1", "su - alice -c 'echo hello | wsqueue demo news'")
    assert (told.returncode, told.stdout) == (0, "hello\n"), told.stderr
    told = deployed.lab.try_to("ssh", "demo1", "su - mallory -c 'echo hello | wsqueue demo news'")
    assert told.returncode == 3, told.stdout + told.stderr


def test_a_client_with_a_key_of_its_own(deployed: Cluster) -> None:
    lab = deployed.lab
    lab.ssh("demo1", "umask 077; cat >/root/billing.key", stdin=deployed.client_key)
    change = r's|^psk_file = .*|psk_file = "/root/billing.key"\nname = "billing"|'
    lab.ssh("demo1", f"sed '{change}' /etc/wsqueue/demo.toml >/root/billing.toml")
    lab.ssh("demo1", "wsqueue publish --config /root/billing.toml orders/1 'an order'")
    told = lab.try_to("ssh", "demo1", "wsqueue publish --config /root/billing.toml news 'no news'")
    assert told.returncode != 0
    assert "billing may not publish to 'news'" in told.stderr
    lab.ssh("demo1", "rm /root/billing.*")
    shown = lab.ssh("producer1", "journalctl --no-pager -o cat -u 'wsqueue-*' --grep='^not allowed '")
    assert "billing may not publish" in shown


def assert_it_starts_again(cluster: Cluster, node: tuple[str, str, int], sent: str) -> None:
    _, host, port = node
    pid, restarts = cluster.property(node, "MainPID"), int(cluster.property(node, "NRestarts"))
    cluster.lab.ssh(host, f"kill -{sent} {pid}")
    wait_until(
        lambda: cluster.property(node, "MainPID") not in {"0", pid} and cluster.is_ready(host, port),
        "the node is ready again",
        WAIT_SECONDS,
    )
    assert int(cluster.property(node, "NRestarts")) == restarts + 1
    cluster.verify()


def test_a_node_that_is_killed_is_started_again(deployed: Cluster) -> None:
    assert_it_starts_again(deployed, NODES[1], "KILL")


def test_a_node_that_hangs_is_started_again(deployed: Cluster) -> None:
    node = NODES[2]
    kind, host, port = node
    unit = f"wsqueue-{kind}@{port}"
    assert deployed.property(node, "WatchdogUSec") == "2min"
    directory = f"/run/systemd/system/{unit}.service.d"
    deployed.lab.ssh(
        host,
        f"mkdir -p {directory} && cat >{directory}/watchdog.conf"
        f" && systemctl daemon-reload && systemctl restart {unit}",
        stdin=WATCHDOG,
    )
    try:
        deployed.verify()
        assert_it_starts_again(deployed, node, "STOP")
    finally:
        deployed.lab.ssh(
            host,
            # It must not stay hung for the tests that follow.
            f"rm -r {directory} && systemctl daemon-reload && systemctl kill --signal=CONT {unit}"
            f" && systemctl restart {unit}",
        )
    deployed.verify()


def test_a_reboot(deployed: Cluster) -> None:
    for host in ("consumer1", "producer1"):
        deployed.lab.reboot(host)
    deployed.wait_until_ready()
    deployed.verify()


def served(cluster: Cluster) -> list[str]:
    """Return the certificates that the nodes show."""
    return [
        ssl.get_server_certificate((cluster.lab.address(host), port), ca_certs=str(cluster.tls / "ca.pem"))
        for _, host, port in NODES
    ]


def change_keys_under_load(cluster: Cluster, *others: str, dropping_out: Step | None = None) -> None:
    """Give a cluster other keys, and none to its client with a name; then play other playbooks.

    Args:
        cluster: The cluster.
        others: The other playbooks, each of which reloads all nodes once.
        dropping_out: The step at which a host drops out of a first run.
    """
    old = cluster.secrets
    # Log lines of the test before end within this second.
    since = cluster.lab.ssh("producer1", "sleep 1; date +%s")
    cluster.psk, cluster.node_psk = (secrets.token_urlsafe(32) for _ in range(2))
    cluster.clients = {}
    cluster.inventory("good")
    with load(cluster.lab) as result:
        if dropping_out is not None:
            play_until_a_host_drops_out(cluster, dropping_out)
        output = cluster.play(ROTATE_PSK, *others, "-vvv")
    reloads = 3 + len(others)
    assert output.count("TASK [wsqueue_demo : Check that all of them passed]") == reloads
    assert result["received"] == result["published"]
    assert result["duplicates"] == 0
    keys = cluster.lab.ssh("producer1", "cat /etc/wsqueue/psk /etc/wsqueue/node_psk")
    assert keys == cluster.psk + cluster.node_psk
    # The first run gets as far as to use the new key on one host, and verifies the cluster once.
    verified = reloads + (dropping_out is not None)
    for host in HOSTS[:3]:
        log = cluster.lab.ssh(host, f"journalctl --no-pager -o cat -u 'wsqueue-*' --since=@{since}")
        nodes = [node for node in NODES if node[1] == host]
        assert len(re.findall("^reloaded ", log, re.MULTILINE)) >= reloads * len(nodes)
        assert re.findall("^(?:started|link|reload refused|TLS refused) .*", log, re.MULTILINE) == []
        # No peer was refused but the demo tests, which try a wrong key at each endpoint.
        endpoints = sum(2 if kind == "consumer" else 1 for kind, _, _ in nodes)
        assert len(re.findall("^hello refused ", log, re.MULTILINE)) == verified * endpoints
        assert cluster.found(host, *old, *cluster.secrets) == []
        # The client that is gone has left nothing.
        assert cluster.lab.try_to("ssh", host, "grep -r billing /etc/wsqueue").stdout == ""
    assert_not_printed(cluster, old + cluster.secrets)
    cluster.verify()


@needs_time
def test_keys_change_under_load(deployed: Cluster) -> None:
    change_keys_under_load(deployed)


@needs_time
@pytest.mark.timeout(1500)
def test_keys_and_certificates_change_under_load_though_a_host_drops_out(deployed: Cluster) -> None:
    certificates = served(deployed)
    change_keys_under_load(deployed, "ansible/playbooks/rotate_tls.yml", dropping_out=HALF_ROTATED)
    assert not set(served(deployed)) & set(certificates)


def times_away(cluster: Cluster, since: str) -> list[tuple[int, int]]:
    """Return when each consumer was not ready, in order, by the clock that all hosts of a lab share.

    The journals note when systemd begins to stop a node, and when the node has said that it is ready again.
    """
    found = []
    for host, port in CONSUMERS:
        lines = cluster.lab.ssh(
            host, f"journalctl --no-pager -o json -u wsqueue-consumer@{port} --since=@{since}"
        ).splitlines()
        events = [
            (NOTED[entry["MESSAGE_ID"]], int(entry["__MONOTONIC_TIMESTAMP"]))
            for entry in map(json.loads, lines)
            if entry.get("MESSAGE_ID") in NOTED
        ]
        assert [event for event, _ in events] == ["stopping", "started"]
        [(_, begin), (_, end)] = events
        found.append((begin, end))
    return sorted(found)


def assert_all_run(cluster: Cluster, version: str) -> None:
    for node in NODES:
        assert cluster.running_version(node) == version
    assert cluster.lab.ssh("demo1", "wsqueue --version") == f"wsqueue {version}"


def test_a_rolling_update_under_load(deployed: Cluster) -> None:
    since = deployed.lab.ssh("demo1", "sleep 1; date +%s")
    with load(deployed.lab) as result:
        output = deployed.play("site.yml", "-e", f"wsqueue_release_zipapp={deployed.zipapps[NEW]}")
    assert VERIFIED.search(output)
    assert_all_run(deployed, NEW)

    # Never two at once.
    away = times_away(deployed, since)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(away)), away

    print(f"published {sum(result['published'].values())}")
    # Each consumer has topics of the load.
    assert {deployed.consumer_of(topic) for topic in result["published"]} == set(CONSUMERS)
    assert min(result["published"].values()) > 100
    # A gap would have ended the load.
    assert result["received"] == result["published"]
    assert result["duplicates"] == 0
    assert result["overtaken"] == []


def test_one_archive_for_support_without_a_secret(deployed: Cluster) -> None:
    output = deployed.play("ansible/playbooks/support.yml")
    assert sum(counts["changed"] for counts in recap(output).values()) == 1
    [archive] = (deployed.directory / "good" / "support").iterdir()
    with tarfile.open(archive) as opened:
        members = {member.name.partition("/")[2]: opened.extractfile(member) for member in opened}
        texts = {name: file.read().decode() for name, file in members.items() if file is not None}
    assert {f"{host}/doctor.txt" for host in HOSTS} < set(texts)
    assert "started" in texts["consumer1/journal/wsqueue-consumer@10003.service.txt"]
    assert [name for name, text in texts.items() for secret in deployed.secrets if secret in text] == []


@needs_time
def test_a_restart_under_load(deployed: Cluster) -> None:
    since = deployed.lab.ssh("demo1", "sleep 1; date +%s")
    with load(deployed.lab) as result:
        output = deployed.play("ansible/playbooks/restart.yml")
    assert VERIFIED.search(output)
    away = times_away(deployed, since)
    assert all(end < begin for (_, end), (begin, _) in itertools.pairwise(away)), away
    assert result["received"] == result["published"]
    assert result["duplicates"] == 0


def test_a_rollback_to_a_damaged_release_is_refused(deployed: Cluster) -> None:
    file = "/opt/wsqueue/previous/site-packages/wsqueue/version.py"
    deployed.lab.ssh("consumer2", f"cp -p {file} /tmp/version.py && echo '# damaged' >>{file}")
    try:
        result = deployed.try_to_play("ansible/playbooks/rollback.yml")
    finally:
        deployed.lab.ssh("consumer2", f"cp -p /tmp/version.py {file}")
    assert result.returncode != 0
    assert "\nchanged: " not in result.stdout
    assert "on consumer2 is damaged (./site-packages/wsqueue/version.py: FAILED)" in " ".join(
        result.stdout.split()
    )


def test_a_rollback(deployed: Cluster) -> None:
    output = deployed.play("ansible/playbooks/rollback.yml")
    assert VERIFIED.search(output)
    assert_all_run(deployed, OLD)
    deployed.verify()
    # Through all of this, consumers have kept their topics.
    kept = deployed.lab.ssh("demo1", f"wsqueue subscribe --from earliest --no-follow {' '.join(KEPT)}")
    assert sorted(kept.splitlines()) == [f"{topic}: this is {topic}" for topic in KEPT]
