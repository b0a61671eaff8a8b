"""The check of the work of groups, with histories that break each of its rules."""

from __future__ import annotations

import pytest

from ...faults.members import check_work, fails_once, is_poison, key_of
from ...faults.schedule import generate, with_groups
from ...faults.workers import Record, message

POISON = next(number for number in range(100) if is_poison(number))


def published(*numbers: int) -> list[Record]:
    records: list[Record] = []
    for number in numbers:
        records.append(Record("attempted", float(number), "publisher-1", number, "news"))
        records.append(Record("acknowledged", number + 0.1, "publisher-1", number, "news"))
    return records


def worked(event: str, number: int, at: float) -> Record:
    return Record(event, at, "publisher-1", number, "news", number, "log")  # type: ignore[arg-type]


def letter(number: int) -> str:
    return message("publisher-1", number, 40)


def test_all_is_done() -> None:
    records = [worked("doing", number, 10.0) for number in range(3)]
    work = check_work(published(0, 1, 2), records, {"news": []}, {}, keyed=False)
    assert (work.missing, work.violations) == (0, [])


def test_a_message_that_nobody_did_is_missing() -> None:
    work = check_work(published(0, 1), [worked("doing", 0, 10.0)], {"news": []}, {}, keyed=False)
    assert work.missing == 1
    work = check_work(published(0, 1), [worked("doing", 0, 10.0)], {"news": [letter(1)]}, {}, keyed=False)
    assert (work.missing, work.violations) == (0, [])


def test_messages_from_before_a_lost_log_are_not_looked_at() -> None:
    assert check_work(published(0, 5), [], {"news": []}, {"news": 3.0}, keyed=False).missing == 1


@pytest.mark.parametrize(
    ("records", "letters", "sentence"),
    [
        ([], [letter(0), letter(0)], "is more than one dead letter"),
        ([], [letter(9)], "that nobody published"),
        ([], ["nonsense"], "that nobody published"),
        ([worked("doing", POISON, 10.0)], [], "which nobody can do"),
    ],
)
def test_a_violation(records: list[Record], letters: list[str], sentence: str) -> None:
    numbers = [0, POISON]
    (found,) = check_work(published(*numbers), records, {"news": letters}, {}, keyed=False).violations
    assert sentence in found


def test_a_message_that_is_lent_before_the_one_of_its_key_is_done() -> None:
    assert key_of("publisher-1", 0) == key_of("publisher-1", 3)
    early = [worked("lent", 0, 1.0), worked("lent", 3, 2.0), worked("doing", 0, 3.0), worked("doing", 3, 4.0)]
    (found,) = check_work(published(0, 3), early, {"news": []}, {}, keyed=True).violations
    assert "before ('publisher-1', 0) was done" in found
    right = [worked("lent", 0, 1.0), worked("doing", 0, 1.5), worked("lent", 3, 2.0), worked("doing", 3, 4.0)]
    assert check_work(published(0, 3), right, {"news": []}, {}, keyed=True).violations == []


def test_a_schedule_with_groups_has_members_and_harms_them() -> None:
    for seed in range(50):
        one = with_groups(generate(seed, "sqlite"))
        assert one == with_groups(generate(seed, "sqlite"))
        assert 2 <= one.workload.members <= 4
        assert not one.workload.classic_publishers
        known = {*one.workload.links, *one.workload.member_names}
        assert all(fault.target in known or ">" not in fault.target for fault in one.faults)
    assert any(fails_once(number) for number in range(20))
