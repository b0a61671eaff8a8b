from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wsqueue.nodes.topics import Topics

from ...support.session_pair import few


def test_a_list_stays_as_it_is_while_subscribers_leave() -> None:
    topics: Topics[int] = Topics()
    for number in range(5):
        topics.subscribe("news", number)
    seen = []
    for number in topics.subscribers("news"):
        topics.unsubscribe("news", number)
        topics.subscribe("news", number + 100)
        seen.append(number)
    assert seen == [0, 1, 2, 3, 4]
    assert topics.subscribers("news") == [100, 101, 102, 103, 104]


@few
@given(st.lists(st.tuples(st.booleans(), st.sampled_from("xyz"), st.integers(0, 3)), max_size=40))
def test_any_history_as_a_plain_list_has_it(history: list[tuple[bool, str, int]]) -> None:
    topics: Topics[int] = Topics()
    plain: list[tuple[str, int]] = []
    for joins, topic, subscriber in history:
        if joins:
            topics.subscribe(topic, subscriber)
            if (topic, subscriber) not in plain:
                plain.append((topic, subscriber))
        else:
            topics.unsubscribe(topic, subscriber)
            if (topic, subscriber) in plain:
                plain.remove((topic, subscriber))
        for one in "xyz":
            assert topics.subscribers(one) == [subscriber for name, subscriber in plain if name == one]
        assert len(topics) == len({name for name, _ in plain})
