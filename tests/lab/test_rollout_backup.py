"""backup.yml and restore.yml on hosts with real systemd: the log of a host is lost and restored."""

from __future__ import annotations

import re
import shutil
import stat

import pytest

from .cluster import Cluster

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(900)]

BACKUP, RESTORE = (f"ansible/playbooks/{name}.yml" for name in ("backup", "restore"))
LOGS = "/var/lib/wsqueue /var/lib/private/wsqueue"
LEFTOVERS = "ls -d /var/tmp/wsqueue-* /root/.ansible/tmp/* 2>/dev/null || true"

# Reads a topic, waits for a line, and reads on: prints each message, and each gap as its size.
READER = """
import asyncio, sys
import wsqueue
async def main():
    async with wsqueue.connect("/etc/wsqueue/demo.toml") as client:
        async with client.subscribe(sys.argv[1], start="earliest", on_gap="yield") as messages:
            async for item in messages:
                text = item.data if isinstance(item, wsqueue.Message) else f"gap of {item.missed}"
                print(text, flush=True)
asyncio.run(main())
"""


def test_backups_are_made_while_consumers_run_and_a_lost_log_is_restored(deployed: Cluster) -> None:
    lab, directory = deployed.lab, deployed.directory / "good" / "backups"
    topic = next(
        topic for topic in map("saved/{}".format, range(99)) if deployed.consumer_of(topic)[0] == "consumer2"
    )
    lab.ssh("demo1", f"wsqueue publish {topic} 'before the backup'")
    # An instance without a log on the disk, as far as its configuration says.
    lab.ssh("consumer2", "cat >/etc/wsqueue/consumer-10009.toml", stdin='role = "consumer"\n')
    try:
        output = deployed.play(BACKUP, "--limit", "consumer2", "-vvv", "--diff")
    finally:
        lab.ssh("consumer2", "rm /etc/wsqueue/consumer-10009.toml")
    assert "SKIPPED: consumer-10009 of consumer2 has the retention mode memory" in output
    [file] = directory.iterdir()
    assert re.fullmatch(r"consumer2-consumer-10001-\d{8}T\d{6}Z\.sqlite", file.name)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, file)] == [0o700, 0o600]
    assert re.search(
        rf"{re.escape(str(file))}: [\d,]+ messages on [\d,]+ topics, the newest of ", " ".join(output.split())
    )
    assert lab.ssh("consumer2", LEFTOVERS) == ""

    release = lab.ssh("demo1", "readlink -f /opt/wsqueue/current")
    lab.ssh("demo1", "cat >/tmp/reader.py", stdin=READER)
    command = f"PYTHONPATH={release}/site-packages exec python3 /tmp/reader.py {topic}"
    with lab.running("demo1", command) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "before the backup\n"
        lab.ssh("demo1", f"wsqueue publish {topic} 'after the backup'")
        assert reader.stdout.readline() == "after the backup\n"

        # The unit is started again with its own log when a backup is damaged.
        damaged = directory.parent / file.name
        shutil.copy(file, damaged)
        with damaged.open("r+b") as stream:
            stream.truncate(file.stat().st_size // 2)
        result = deployed.try_to_play(
            RESTORE, "--limit", "consumer2", "-e", f"wsqueue_restore_from={damaged}"
        )
        told = " ".join(result.stdout.split())
        assert "consumer-10001 of consumer2 is not restored, and goes on with what it had: " in told
        assert deployed.property(("consumer", "consumer2", 10001), "ActiveState") == "active"
        assert lab.ssh("consumer2", LEFTOVERS) == ""

        # As on a host in its place: the instance is there, its log is not, and it does not run.
        lab.ssh("consumer2", f"systemctl stop wsqueue-consumer@10001 && rm -r {LOGS}")
        deployed.play(
            RESTORE, "--limit", "consumer2", "-e", f"wsqueue_restore_from={directory}/*.sqlite", "-vvv"
        )
        assert lab.ssh("consumer2", LEFTOVERS) == ""
        assert reader.stdout.readline() == "gap of None\n"
        lab.ssh("demo1", f"wsqueue publish {topic} 'after the restore'")
        assert reader.stdout.readline() == "after the restore\n"
    kept = lab.ssh("demo1", f"wsqueue subscribe --from earliest --no-follow {topic}")
    assert kept.splitlines() == ["before the backup", "after the restore"]
    assert not [output for output in deployed.outputs for secret in deployed.secrets if secret in output]
