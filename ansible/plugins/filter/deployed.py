"""Filters that compare the hosts with the inventory.

All are plain functions over strings, lists and mappings.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

TLS = "wss://"

BACKUP_NAME = re.compile(r"(?:.*-)?(consumer-[0-9]+)(?:-[0-9A-Za-z]+)?\.sqlite")
"""The name of a backup: the host, which may have any name, the instance, and the time."""

SQLITE_MAGIC = b"SQLite format 3\0"
SQLITE_HEADER_BYTES = 100
SQLITE_APPLICATION = slice(68, 72)
APPLICATION_ID = b"wsqu"
"""The application in the header of a log of wsqueue, the same as in wsqueue/log/schema.py."""


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        functions = (
            backups,
            backups_problem,
            deployed_consumers,
            deployed_retention,
            kept,
            looks,
            moved_percent,
            orphans_sentence,
            tls_changes,
            unknown_instances,
            waits_only_for,
        )
        return {function.__name__: function for function in functions}


# --- The list of consumers ---


def deployed_consumers(text: str) -> list[str]:
    """Return host:port of all consumers, as the configuration of a node has them.

    Args:
        text: The configuration, "" for none.

    Raises:
        ValueError: It is no TOML.
    """
    settings = _settings(text)
    if "consumers" in settings:
        return [address.removesuffix("/producer") for address in settings["consumers"]]
    consumers: list[str] = settings.get("monitoring", {}).get("consumers", [])
    return consumers


def moved_percent(old: Sequence[str], new: Sequence[str]) -> int:
    """Return how many percent of the topics get another consumer, rounded up; 0 without an old list.

    Args:
        old: host:port of all consumers before, with or without wss:// and a path.
        new: The same, afterwards.
    """
    if not old or not new:
        return 0
    before, after = ([_place(address) for address in addresses] for addresses in (old, new))
    # hash % len(before) and hash % len(after) repeat together after this number of hashes.
    period = math.lcm(len(before), len(after))
    moved = sum(before[number % len(before)] != after[number % len(after)] for number in range(period))
    return math.ceil(100 * moved / period)


def tls_changes(old: Sequence[str], new: Sequence[str]) -> bool:
    """Return True if the links get or lose TLS."""
    with_tls = [any(address.startswith(TLS) for address in addresses) for addresses in (old, new)]
    return bool(old) and with_tls[0] != with_tls[1]


def _settings(text: str) -> dict[str, Any]:
    """Return the settings in a configuration.

    Raises:
        ValueError: It is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(
            f"a configuration in /etc/wsqueue is damaged ({error}): restore or remove it"
        ) from None


def _place(address: str) -> str:
    return address.removeprefix(TLS).partition("/")[0]


# --- Kept messages ---


def looks(
    files: Iterable[str], places: Mapping[int | str, str], consumers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the name of each consumer on a host, and the arguments of `wsqueue kept` that count its orphans.

    Args:
        files: Paths of configurations, as /etc/wsqueue/consumer-10001.toml.
        places: The host:port of each port that the inventory has; all that others keep becomes orphaned.
        consumers: host:port of all consumers.
    """
    numbers = {str(port): consumers.index(place) + 1 for port, place in places.items() if place in consumers}
    found = []
    for file in files:
        name = file.rpartition("/")[2].removesuffix(".toml")
        arguments = [f"/var/lib/wsqueue/{name}"]
        if number := numbers.get(name.rpartition("-")[2]):
            arguments += ["--number", str(number), "--of", str(len(consumers))]
        found.append({"name": name, "arguments": arguments})
    return found


def kept(results: Iterable[Mapping[str, Any]], host: str) -> list[dict[str, Any]]:
    """Return the counts of `wsqueue kept --json`, as `orphans_sentence` takes them.

    Args:
        results: Results of a loop over the items of `looks`.
        host: Name of the host.
    """
    return [
        {"name": f"{result['item']['name']} of {host}"}
        | (json.loads(result["stdout"]) if result["rc"] == 0 else {})
        for result in results
        if "rc" in result
    ]


def orphans_sentence(looks: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence about kept messages that no client would look for where they are.

    Args:
        looks: Of each instance that was looked at: its `name`, and `topics` and `messages`, or neither where
            its files don't tell.
    """
    known = [look for look in looks if "messages" in look]
    unknown = [look["name"] for look in looks if "messages" not in look]
    messages, topics = (sum(int(look[key]) for look in known) for key in ("messages", "topics"))
    sentence = f"{messages:,} kept messages of {topics:,} topics would be where no client looks for them"
    places = [f"{look['messages']:,} at {look['name']}" for look in known if look["messages"]]
    if places:
        sentence += f" ({', '.join(places)})"
    if unknown:
        sentence += f"; the messages of {', '.join(unknown)} are in memory, and not counted"
    return sentence


# --- Backups ---


def deployed_retention(text: str) -> str:
    """Return where a consumer keeps messages: the mode of the retention in its configuration.

    Raises:
        ValueError: It is no TOML.
    """
    mode: str = _settings(text).get("retention", {}).get("mode", "memory")
    return mode


def backups(files: Iterable[str]) -> list[dict[str, str]]:
    """Return the `file` and the `instance` of each backup, as the names of the files say it.

    Args:
        files: Paths of files, as backups/web1-consumer-10001-20261130T070102Z.sqlite.
    """
    matches = [(file, BACKUP_NAME.fullmatch(file.rpartition("/")[2])) for file in files]
    return [{"file": file, "instance": match[1]} for file, match in matches if match]


def backups_problem(files: Sequence[str]) -> str:
    """Return why files on the control node cannot be restored, "" if they can be.

    Args:
        files: Their paths.
    """
    instances = {backup["file"]: backup["instance"] for backup in backups(files)}
    for file in files:
        if file not in instances:
            return (
                f"the name of {file} does not say which consumer it is of; expected a name such as "
                "web1-consumer-10001-20261130T070102Z.sqlite"
            )
        try:
            with Path(file).open("rb") as stream:
                header = stream.read(SQLITE_HEADER_BYTES)
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
        if not header.startswith(SQLITE_MAGIC) or header[SQLITE_APPLICATION] != APPLICATION_ID:
            return f"{file} is no backup of wsqueue; expected a file that backup.yml or `wsqueue backup` made"
    for instance in instances.values():
        several = [file for file in files if instances[file] == instance]
        if len(several) > 1:
            return f"{' and '.join(several)} are all of {instance}; expected one file for each consumer"
    return ""


# --- Instances ---


def waits_only_for(answer: str, dead: Iterable[str]) -> bool:
    """Return True if an instance is not ready only because it has no link to nodes that are known to be down.

    Args:
        answer: Its answer at /readyz.
        dead: host:port of these nodes.
    """
    match = re.fullmatch(r"not ready: no link to (.+)", answer.strip())
    return match is not None and {_place(address) for address in match[1].split(", ")} <= set(dead)


def unknown_instances(files: Iterable[str], wanted: Mapping[str, Iterable[int | str]]) -> list[str]:
    """Return the instances on a host that the inventory does not have, e.g. consumer-10001.

    Args:
        files: Paths of configurations, as /etc/wsqueue/consumer-10001.toml.
        wanted: The ports of each kind.
    """
    known = {f"{kind}-{port}" for kind, ports in wanted.items() for port in ports}
    names = (re.fullmatch(r".*/((?:consumer|producer)-\d+)\.toml", file) for file in files)
    return sorted(match[1] for match in names if match and match[1] not in known)
