"""How far a named reader has come, in memory."""

from __future__ import annotations

from wsqueue.client.commits import Commits
from wsqueue.client.values import Position


def at(offset: int, log: str = "log") -> Position:
    return Position(log, offset)


def test_one_commit_is_under_way_at_a_time() -> None:
    commits: Commits[str] = Commits()
    assert commits.take() is None
    assert commits.say(1, at(1), "one")
    assert not commits.empty
    assert commits.take() == at(1)
    assert commits.say(2, at(2), "two")
    assert commits.say(3, at(3))
    assert commits.take() is None
    assert commits.confirm(at(1)) == ["one"]
    assert commits.take() == at(3)
    assert commits.confirm(at(3)) == ["two"]
    assert commits.take() is None


def test_it_is_empty_when_all_is_kept() -> None:
    commits: Commits[str] = Commits()
    assert commits.empty
    commits.say(1, at(1))
    commits.take()
    commits.confirm(at(1))
    assert commits.empty


def test_an_answer_to_another_commit_is_none() -> None:
    commits: Commits[str] = Commits()
    assert commits.confirm(at(1)) == []
    commits.say(1, at(1), "one")
    assert commits.confirm(at(1)) == []
    commits.take()
    assert commits.confirm(at(1, "another")) == []
    assert commits.confirm(at(1)) == ["one"]


def test_the_order_is_that_in_which_messages_came() -> None:
    """In a log that replaces another one, offsets begin anew."""
    commits: Commits[str] = Commits()
    commits.say(5, at(5))
    commits.say(6, at(1, "another"), "new")
    commits.say(4, at(4), "old")
    assert commits.take() == at(1, "another")
    assert commits.confirm(at(1, "another")) == ["new", "old"]
    assert not commits.say(5, at(5), "kept already")
    assert commits.empty


def test_all_that_is_not_kept_goes_to_the_next_connection() -> None:
    commits: Commits[str] = Commits()
    commits.say(1, at(1), "one")
    commits.take()
    commits.say(2, at(2), "two")
    commits.send_again()
    # The answer to the first may be lost, or late.
    assert commits.take() == at(2)
    assert commits.confirm(at(1)) == []
    assert commits.confirm(at(2)) == ["one", "two"]


def test_giving_up() -> None:
    commits: Commits[str] = Commits()
    commits.say(1, at(1), "one")
    commits.take()
    commits.say(2, at(2), "two")
    assert commits.fail_all() == ["one", "two"]
    assert commits.empty
    assert commits.take() is None
    assert commits.confirm(at(1)) == []
