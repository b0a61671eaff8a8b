"""The environment of the commands of `wsqueue work`."""

from __future__ import annotations

from typing import Any, cast

from wsqueue.client.group import GroupLink, GroupMessage
from wsqueue.tools.work import environment


def message(headers: dict[str, str], **changes: Any) -> GroupMessage:
    return GroupMessage("jobs", "data", "log", 7, headers, 3, cast("GroupLink", None), **changes)


def test_it_has_the_circumstances_of_the_message_and_no_secret() -> None:
    own = {"PATH": "/bin", "WSQUEUE_CONFIG": "/demo.toml", "WSQUEUE_PSK": "secret", "WSQUEUE_OFFSET": "1"}
    own |= {"CREDENTIALS_DIRECTORY": "/run/credentials", "WSQUEUE_HEADER_OLD": "of another message"}
    assert environment(own, message({}), "g") == {
        "PATH": "/bin",
        "WSQUEUE_CONFIG": "/demo.toml",
        "WSQUEUE_TOPIC": "jobs",
        "WSQUEUE_GROUP": "g",
        "WSQUEUE_OFFSET": "7",
        "WSQUEUE_DELIVERIES": "3",
    }


def test_headers_have_names_that_shells_know_and_the_last_one_counts() -> None:
    headers = {"a-b": "first", "A.b": "last", "straße=": "=", "ID9": "", "nul": "a\0b", "PATH": "no path"}
    found = environment({"PATH": "/bin"}, message(headers), "g")
    assert found["PATH"] == "/bin"
    assert {name: value for name, value in found.items() if name.startswith("WSQUEUE_HEADER_")} == {
        "WSQUEUE_HEADER_A_B": "last",
        "WSQUEUE_HEADER_STRA_E_": "=",
        "WSQUEUE_HEADER_ID9": "",
        "WSQUEUE_HEADER_PATH": "no path",
    }
