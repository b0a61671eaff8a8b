"""Schedules come from their seeds alone, and make sense."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import msgspec
import pytest

from ...faults import schedule
from ...faults.schedule import (
    ALL_NODES,
    CHANGES,
    ENGINE_KINDS,
    FOR_GOOD,
    FREEZE_SECONDS,
    HITS_THE_PROCESS,
    LAB_KINDS,
    LOCAL_KINDS,
    QUORUM_SECONDS,
    SQLITE_KINDS,
    Retention,
)

SEEDS = range(300)
KNOWN = [
    "0.24 s: loss 0.1191 consumer-1 for 0.28 s",
    "0.80 s: kill producer-1 for 1.02 s",
    "3.54 s: reset publisher-1>producer-1 for 0.00 s",
]
RETENTIONS: tuple[Retention, ...] = ("memory", "sqlite")


def all_schedules(seconds: float = 4.0) -> list[schedule.Schedule]:
    return [schedule.generate(seed, retention, seconds) for seed in SEEDS for retention in RETENTIONS]


def test_a_seed_has_one_schedule() -> None:
    assert all_schedules() == all_schedules()
    assert len({repr(one.faults) for one in all_schedules()}) == len(all_schedules())


def test_a_known_seed_gives_what_it_always_gave() -> None:
    """Otherwise a failure in continuous integration could not be repeated by its seed."""
    one = schedule.generate(7, "sqlite")
    assert [str(fault) for fault in one.faults] == KNOWN


def test_a_file_gives_the_same_schedule(tmp_path: Path) -> None:
    for one in all_schedules()[:20]:
        one.write(tmp_path / "schedule.json")
        assert schedule.read(tmp_path / "schedule.json") == one


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "schedule.json").write_text('{"seed": 1, "retention": "paper"}')
    with pytest.raises(msgspec.ValidationError):
        schedule.read(tmp_path / "schedule.json")


def test_every_fault_hits_something_while_messages_flow() -> None:
    for one in all_schedules():
        workload = one.workload
        processes = (
            workload.consumer_names
            + workload.producer_names
            + workload.all_publisher_names
            + workload.all_subscriber_names
        )
        assert one.faults
        for fault in one.faults:
            assert fault.target in [*processes, *workload.links, ALL_NODES]
            assert (fault.target == ALL_NODES) == (fault.kind == "rotate")
            assert 0 < fault.at < workload.seconds
            assert 0 <= fault.seconds <= (FREEZE_SECONDS if fault.kind == "freeze" else 3)
            assert fault.kind != "limits" or CHANGES[int(fault.amount)]
        assert one.faults == sorted(one.faults, key=lambda fault: fault.at)


def test_all_faults_occur() -> None:
    kinds = {fault.kind for one in all_schedules() for fault in one.faults}
    assert kinds == set(LOCAL_KINDS)


def test_only_sqlite_has_a_file() -> None:
    for one in all_schedules():
        if one.retention == "memory":
            assert not {fault.kind for fault in one.faults} & SQLITE_KINDS


def test_with_each_restore_comes_a_backup_before_it() -> None:
    for one in all_schedules():
        copied = set[str]()
        for fault in one.faults:
            assert fault.kind not in {"backup", "restore"} or fault.target in one.workload.consumer_names
            assert fault.kind != "restore" or fault.target in copied
            if fault.kind == "backup":
                copied.add(fault.target)


def test_clocks_step_by_days_both_ways() -> None:
    steps = {fault.amount for one in all_schedules() for fault in one.faults if fault.kind == "clock"}
    assert steps >= {86_400.0, -86_400.0}


def test_some_clusters_have_certificates_and_some_have_classic_peers() -> None:
    workloads = [one.workload for one in all_schedules()]
    for some in (
        [workload for workload in workloads if workload.tls],
        [workload for workload in workloads if workload.classic_publishers],
    ):
        assert len(workloads) / 5 < len(some) < len(workloads) / 2
    for workload in workloads:
        # A node takes no classic peer over TLS, unless it is told to.
        assert not (workload.tls and workload.classic_publishers)
        assert all(set(topics) <= set(workload.topics) for topics in workload.classic_subscriptions)


def test_a_process_is_hit_once_at_a_time() -> None:
    for one in all_schedules():
        for first, second in combinations(one.faults, 2):
            if first.target == second.target and {first.kind, second.kind} <= HITS_THE_PROCESS:
                assert second.at > first.at + first.seconds


def test_the_lab_gets_what_can_be_done_from_outside() -> None:
    for seed in SEEDS:
        one = schedule.generate(seed, "sqlite", backend="lab")
        assert {fault.kind for fault in one.faults} <= set(LAB_KINDS)
        for fault in one.faults:
            if ">" in fault.target:
                assert fault.target.startswith("producer")


def test_somebody_hears_every_topic() -> None:
    for one in all_schedules():
        workload = one.workload
        assert set(workload.subscriptions[0]) == set(workload.topics)
        assert all(0 < len(topics) == len(set(topics)) for topics in workload.subscriptions)


def test_a_longer_schedule_has_its_faults_later() -> None:
    latest = [max(f.at for one in all_schedules(seconds) for f in one.faults) for seconds in (2, 4, 20)]
    assert all(earlier < later for earlier, later in pairwise(latest))


@pytest.fixture(name="shared")
def on_a_shared_log() -> list[schedule.Schedule]:
    return [schedule.generate(seed, "jetstream") for seed in SEEDS]


class TestSharedLog:
    def test_a_seed_has_one_schedule(self, shared: list[schedule.Schedule], tmp_path: Path) -> None:
        assert shared == [schedule.generate(seed, "jetstream") for seed in SEEDS]
        shared[0].write(tmp_path / "schedule.json")
        assert schedule.read(tmp_path / "schedule.json") == shared[0]

    def test_every_fault_hits_something(self, shared: list[schedule.Schedule]) -> None:
        for one in shared:
            workload = one.workload
            assert (workload.consumers, workload.engines, workload.spares) == (3, 3, 1)
            assert not workload.classic_publishers
            assert not workload.classic_subscriptions
            processes = (
                workload.consumer_names
                + workload.producer_names
                + workload.publisher_names
                + workload.subscriber_names
            )
            targets: dict[str, list[str]] = {
                **dict.fromkeys(
                    ("engine kill", "engine restart", "engine stop", "engine gone"), workload.engine_names
                ),
                **dict.fromkeys(("engine cut", "consumer gone", "shrink"), workload.consumer_names),
                "step-down": [f"wsqueue-{number}" for number in range(schedule.STREAMS)],
                "lists disagree": workload.producer_names,
                "grow": ["consumer-4"],
                "rotate": [ALL_NODES],
            }
            for fault in one.faults:
                assert fault.target in targets.get(fault.kind, processes + workload.links)
                assert 0 < fault.at < workload.seconds
                assert 0 <= fault.seconds <= FREEZE_SECONDS

    def test_all_faults_occur(self, shared: list[schedule.Schedule]) -> None:
        kinds = {fault.kind for one in shared for fault in one.faults}
        assert kinds == {*LOCAL_KINDS, *ENGINE_KINDS} - SQLITE_KINDS

    def test_enough_is_left_of_all(self, shared: list[schedule.Schedule]) -> None:
        for one in shared:
            kinds = [fault.kind for fault in one.faults]
            assert all(kinds.count(kind) <= 1 for kind in FOR_GOOD)
            for fault in one.faults:
                if "engine gone" in kinds and fault.kind in {"engine kill", "engine restart", "engine stop"}:
                    assert fault.seconds <= QUORUM_SECONDS

    def test_what_is_gone_for_good_is_not_hit_again(self, shared: list[schedule.Schedule]) -> None:
        for one in shared:
            for first, second in combinations(one.faults, 2):
                if first.target == second.target and {first.kind, second.kind} <= HITS_THE_PROCESS:
                    assert second.at > first.at + first.seconds
                    assert first.kind not in FOR_GOOD

    def test_the_consumer_that_comes_later_has_links(self, shared: list[schedule.Schedule]) -> None:
        assert {"producer-1>consumer-4", "consumer-4>engine-1", "consumer-1>engine-3"} <= set(
            shared[0].workload.links
        )
