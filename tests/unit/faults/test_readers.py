"""The check of named readers, with histories that break each of its rules."""

from __future__ import annotations

import pytest

from ...faults.readers import check_reading
from ...faults.schedule import generate, with_groups
from ...faults.workers import Record

BEGUN = Record("begun", 0.0, topic="news")


def published(*numbers: int) -> list[Record]:
    records: list[Record] = []
    for number in numbers:
        records.append(Record("attempted", float(number), "publisher-1", number, "news"))
        records.append(Record("acknowledged", number + 0.1, "publisher-1", number, "news"))
    return records


def record(event: str, number: int) -> Record:
    return Record(event, 10.0, "publisher-1", number, "news", number, "log")  # type: ignore[arg-type]


def came(*numbers: int) -> list[Record]:
    return [record("delivered", number) for number in numbers]


def done(number: int) -> list[Record]:
    return [record("doing", number), record("done", number)]


def test_messages_that_are_not_done_come_again() -> None:
    reading = {
        "reader-1": [BEGUN, *came(0, 1), *done(0), record("doing", 1), BEGUN, *came(1, 2), BEGUN, *came(2)],
        "reader-2": [BEGUN, *came(0, 1, 2)],
    }
    result = check_reading(published(0, 1, 2), reading, {})
    assert (result.missing, result.violations) == (0, [])


def test_a_message_that_did_not_come_is_missing() -> None:
    reading = {"reader-1": [BEGUN, *came(0)], "reader-2": [BEGUN, *came(0, 1)]}
    assert check_reading(published(0, 1), reading, {}).missing == 1


def test_a_log_that_was_lost() -> None:
    lost = [BEGUN, *came(0, 1), *done(1), Record("gap", 10.0, topic="news"), *came(0, 5)]
    result = check_reading(published(0, 3, 5, 6), {"reader-1": lost}, {"news": 4.0})
    assert (result.missing, result.violations) == (1, [])


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([BEGUN, *came(0, 1), *done(1), BEGUN, *came(1)], "1 on 'news' comes back, though all up to 1"),
        ([BEGUN, *came(0, 1), *done(1), *came(0)], "0 on 'news' comes back"),
        ([BEGUN, *came(0, 1, 2), *done(0), BEGUN, *came(2)], "2 on 'news' comes first, and 0 was"),
        ([BEGUN, *came(1)], "1 on 'news' comes first, and -1 was"),
        ([BEGUN, *came(0, 2, 1)], "1 on 'news' comes after 2"),
        ([BEGUN, *came(0, 0)], "0 on 'news' comes after 0"),
        ([BEGUN, Record("gap", 1.0, topic="news", missed=3)], "a gap of 3 on 'news'"),
        ([BEGUN, Record("damaged", 1.0, topic="news", text="x")], "nobody published on 'news': 'x'"),
    ],
)
def test_a_violation(records: list[Record], sentence: str) -> None:
    (found,) = check_reading([], {"reader-1": records}, {}).violations
    assert found.startswith("reader-1: ")
    assert sentence in found


def test_a_schedule_with_groups_has_readers_and_kills_them() -> None:
    for seed in range(50):
        one = with_groups(generate(seed, "sqlite"))
        killed = [fault.target for fault in one.faults if fault.kind == "kill"]
        assert 1 <= one.workload.readers <= 2
        assert set(one.workload.reader_names) & set(killed)
