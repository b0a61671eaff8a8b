"""`wsqueue verify` against clusters that are well and clusters that are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

import wsqueue
from wsqueue.config.model import ClientConfig, Limits
from wsqueue.tools import verify as verify_module
from wsqueue.tools.verify import Check, verify, write_junit

from ..support.classic_peer import IndependentConsumer, IndependentProducer, Order, serving
from ..support.nodes import DEFAULTS, KEY, OTHER_KEY, Nodes, RunningNode
from ..support.ports import free_port
from ..support.waiting import soon

pytestmark = pytest.mark.anyio


async def test_a_good_cluster(nodes: Nodes) -> None:
    consumers = [await nodes.consumer() for _ in range(2)]
    producers = [await nodes.producer(consumers) for _ in range(2)]
    for producer in producers:
        await producer.ready()
    checks = await checks_of(producers, consumers)
    assert problems_of(checks) == {}
    produce = [f"{producer.address}/produce" for producer in producers]
    subscribe = [f"{consumer.address}/subscribe" for consumer in consumers]
    links = [f"{consumer.address}/producer" for consumer in consumers]
    assert [check.name for check in checks] == [
        *(f"{address} answers" for address in produce + subscribe),
        *(f"a message comes back through {one} and {other}" for other in subscribe for one in produce),
        *(f"{address} refuses a wrong key" for address in produce + subscribe + links),
    ]
    assert all(check.seconds > 0 for check in checks)
    for node in consumers + producers:
        assert node.counters["refused_4401"] == (2 if node in consumers else 1)


@pytest.mark.parametrize("order", ["document", "reversed"])
async def test_a_good_cluster_of_independent_nodes(nodes: Nodes, order: Order) -> None:
    async with soon(), serving(IndependentConsumer(KEY, order).handle) as consumer:
        producer = IndependentProducer(KEY, order, [f"ws://{consumer}/producer"])
        async with serving(producer.handle) as address:
            checks = await checks_of([address], [consumer], order)
    assert problems_of(checks) == {}
    assert len(checks) == 2 + 1 + 3


async def test_a_consumer_is_down(nodes: Nodes) -> None:
    up, down = await nodes.consumer(), f"127.0.0.1:{free_port()}"
    producer = await nodes.producer([up, down])
    problems = problems_of(await checks_of([producer], [up, down]))
    assert set(problems) == {
        f"{down}/subscribe answers",
        f"a message comes back through {producer.address}/produce and {down}/subscribe",
        f"{down}/subscribe refuses a wrong key",
        f"{down}/producer refuses a wrong key",
    }
    assert all("refused" in problem for problem in problems.values())


async def test_a_producer_without_link_to_a_consumer(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "ANSWER_SECONDS", 0.5)
    consumer = await nodes.consumer()
    producer = await nodes.producer([f"127.0.0.1:{free_port()}"])
    problems = problems_of(await checks_of([producer], [consumer]))
    assert problems == {
        f"a message comes back through {producer.address}/produce and {consumer.address}/subscribe": (
            "nothing came back within 0.5 seconds"
        )
    }


async def test_a_node_with_another_key(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    other = await nodes.producer([consumer], key=OTHER_KEY)
    problems = problems_of(await checks_of([producer, other], [consumer]))
    assert set(problems) == {
        f"{other.address}/produce answers",
        f"a message comes back through {other.address}/produce and {consumer.address}/subscribe",
    }
    assert all("4401" in problem for problem in problems.values())


async def test_a_node_that_takes_any_key(nodes: Nodes) -> None:
    careless = IndependentConsumer(KEY, "document", any_key=True)
    async with soon(), serving(careless.handle) as consumer:
        producer = await nodes.producer([consumer])
        await producer.ready()
        problems = problems_of(await checks_of([producer], [consumer]))
        await producer.stop()
    assert problems == {
        f"{consumer}/subscribe refuses a wrong key": "a wrong key was not refused",
        f"{consumer}/producer refuses a wrong key": "a wrong key was not refused",
    }


async def test_a_node_that_changes_messages(nodes: Nodes) -> None:
    forger = IndependentConsumer(KEY, "document", change=lambda text: text.replace("日本", "日本語"))
    async with soon(), serving(forger.handle) as consumer:
        producer = await nodes.producer([consumer])
        await producer.ready()
        problems = problems_of(await checks_of([producer], [consumer]))
        await producer.stop()
    assert list(problems.values()) == ["the message that came back differs from the one that was sent"]


async def test_lists_of_consumers_in_another_order(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "ANSWER_SECONDS", 0.5)
    consumers = [await nodes.consumer() for _ in range(2)]
    producer = await nodes.producer(consumers)
    await producer.ready()
    problems = problems_of(await checks_of([producer], consumers[::-1]))
    assert list(problems.values()) == ["nothing came back within 0.5 seconds"] * 2


async def test_something_that_is_no_node(nodes: Nodes) -> None:
    consumer, producer = await nodes.cluster()
    problems = problems_of(await checks_of([consumer], [producer]))
    assert len(problems) == 2 + 1 + 3
    assert all("404" in problem for problem in problems.values())


def test_a_report(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    checks = [
        Check("one", 0.25, ""),
        Check('two <&> " ñ', 1.5, 'it is <broken> & "bad"\nñ 😀'),
        Check("three", 0.0, ""),
    ]
    write_junit(checks, file)
    suite = ET.parse(file).getroot()
    assert suite.tag == "testsuite"
    assert suite.attrib == {"name": "wsqueue verify", "tests": "3", "failures": "1", "time": "1.750"}
    assert [case.attrib["name"] for case in suite] == [check.name for check in checks]
    assert [case.attrib["time"] for case in suite] == ["0.250", "1.500", "0.000"]
    assert {case.attrib["classname"] for case in suite} == {"wsqueue.verify"}
    assert [failure.attrib["message"] for failure in suite.iter("failure")] == [checks[1].problem]


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\ufffe", "\x85", "\r"])
def test_a_report_of_what_a_node_made_up(tmp_path: Path, character: str) -> None:
    """The reason of a close frame is any UTF-8, and XML cannot express all of that."""
    file = tmp_path / "report.xml"
    write_junit([Check("one", 0.0, f"closed with 4000 (a{character}b)")], file)
    (failure,) = ET.parse(file).getroot().iter("failure")
    assert failure.attrib["message"].startswith("closed with 4000 (a")


async def checks_of(
    producers: Sequence[RunningNode | str], consumers: Sequence[RunningNode | str], order: Order = "document"
) -> list[Check]:
    config = ClientConfig(
        producers=Nodes.addresses(producers, "/produce"),
        consumers=Nodes.addresses(consumers, "/subscribe"),
        hello_order=wsqueue.Order(order),
        limits=Limits(**DEFAULTS, hello_seconds=0.5),
    )
    async with soon():
        return [check async for check in verify(config, wsqueue.PreSharedKey(KEY))]


def problems_of(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.problem for check in checks if check.problem}
