"""Files that the roles write, from an inventory, without a host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from wsqueue.config.load import load_any_config
from wsqueue.config.model import (
    ConsumerConfig,
    Monitoring,
    NodeConfig,
    ProducerConfig,
    Retention,
    TopicRetention,
)

from ..support import control_node
from ..support.promtool import promtool

CONSUMERS = {
    "c1": {"ansible_host": "192.0.2.1", "wsqueue_consumer_ports": [10001, 10003]},
    "c2.example.com": {},
    "c3": {"ansible_host": "198.51.100.9", "wsqueue_address": "2001:db8::3"},
}
PRODUCERS = {"p1": {"ansible_host": "192.0.2.2", "wsqueue_producer_ports": [10002, 10004]}}
ALL_CONSUMERS = ["192.0.2.1:10001", "192.0.2.1:10003", "c2.example.com:10001", "[2001:db8::3]:10001"]
ALL_PRODUCERS = ["192.0.2.2:10002", "192.0.2.2:10004"]

PLAYBOOK = """
- hosts: consumers, producers
  gather_facts: false
  connection: local
  tasks:
    # For their variables.
    - ansible.builtin.import_role: {name: PREFIXwsqueue_consumer}
      when: false
    - ansible.builtin.import_role: {name: PREFIXwsqueue_producer}
      when: false
    - ansible.builtin.template:
        src: "{{ roles }}/wsqueue_node/templates/node.toml.j2"
        dest: "{{ output }}/{{ inventory_hostname }}-{{ wsqueue_node_kind }}-{{ wsqueue_node_port }}.toml"
      loop: "{{ wsqueue_node_ports }}"
      loop_control: {loop_var: wsqueue_node_port}
      vars: {wsqueue_node_kind: "{{ 'consumer' if 'consumers' in group_names else 'producer' }}"}
- hosts: monitoring
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.import_role: {name: PREFIXwsqueue_monitoring}
      when: false
    - ansible.builtin.template:
        src: "{{ roles }}/wsqueue_monitoring/templates/{{ item }}.j2"
        dest: "{{ output }}/{{ item }}"
      loop: [prometheus.yml, default]
"""


class Written:
    """Files that the roles write on all hosts of an inventory."""

    def __init__(
        self,
        directory: Path,
        monitoring: dict[str, Any],
        variables: dict[str, Any],
        collections: Path | None = None,
    ) -> None:
        self.directory = directory
        hosts = {"consumers": CONSUMERS, "producers": PRODUCERS, "monitoring": monitoring}
        children = {group: {"hosts": its} for group, its in hosts.items()}
        inventory, playbook = directory / "hosts.yml", directory / "write.yml"
        inventory.write_text(
            json.dumps(
                {
                    "all": {
                        "children": children,
                        "vars": {"ansible_python_interpreter": "{{ ansible_playbook_python }}"} | variables,
                    }
                }
            )
        )
        playbook.write_text(PLAYBOOK.replace("PREFIX", "wsqueue.wsqueue." if collections else ""))
        code = (
            collections / "ansible_collections" / "wsqueue" / "wsqueue" if collections else ROOT / "ansible"
        )
        values = json.dumps({"roles": str(code / "roles"), "output": str(directory)})
        control_node.run("ansible-playbook", "-i", inventory, playbook, "-e", values, collections=collections)

    def node(self, name: str) -> NodeConfig:
        """Return a configuration as the node reads it."""
        loaded = load_any_config(self.directory / f"{name}.toml")
        assert isinstance(loaded, NodeConfig)
        return loaded

    def monitoring(self, name: str) -> Monitoring:
        return self.node(name).monitoring

    def prometheus(self) -> Any:
        file = self.directory / "prometheus.yml"
        # Only the syntax: the files that it names are not here.
        promtool("check", "config", "--syntax-only", file)
        return yaml.safe_load(file.read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("plain"), {}, {"wsqueue_plain": True})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Written:
    variables = {
        "wsqueue_tls": True,
        "wsqueue_tls_client_certificates": True,
        "wsqueue_clients": {
            "billing": {"key": "secret", "publish": ["orders/*"], "max_connections": 5},
            "watch": {"key": ["new", "old"], "status": True},
        },
        "wsqueue_consumer_limits": {"max_connections": 100},
        "wsqueue_consumer_retention": {
            "max_bytes": 10**9,
            "topics": [
                {"match": "state/*", "max_messages_per_topic": 1, "max_age_seconds": 604800},
                {"match": "*", "max_bytes_per_topic": 10**6},
            ],
        },
        "wsqueue_pages": "none",
        "wsqueue_monitoring_alertmanagers": ["192.0.2.9:9093"],
        "wsqueue_monitoring_scrape_configs": [
            {"job_name": "other", "static_configs": [{"targets": ["192.0.2.9:9100"]}]}
        ],
    }
    return Written(tmp_path_factory.mktemp("watched"), {"m1": {}}, variables)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, collections: Path) -> Written:
    """Return the files that the roles of the collection write."""
    variables = {
        "wsqueue_tls": True,
        "wsqueue_pages_offset": 100,
        "wsqueue_pages_listen": ["127.0.0.1", "[::1]", "192.0.2.77"],
    }
    return Written(tmp_path_factory.mktemp("local"), {}, variables, collections)


def test_without_a_monitoring_host_the_pages_are_for_the_host_itself(plain: Written) -> None:
    for name in (
        "c1-consumer-10001",
        "c1-consumer-10003",
        "c2.example.com-consumer-10001",
        "p1-producer-10004",
    ):
        assert plain.monitoring(name).pages == "loopback"
        assert plain.monitoring(name).listen == []
    assert not (plain.directory / "prometheus.yml").exists()


def test_nodes_speak_without_tls_only_where_the_inventory_says_so(plain: Written, watched: Written) -> None:
    # The files of a plain cluster are good only because they say so.
    for name in ("c1-consumer-10001", "p1-producer-10002"):
        assert (plain.node(name).plain, watched.node(name).plain) == (True, False)


def test_all_nodes_know_the_clients_that_have_keys_of_their_own(plain: Written, watched: Written) -> None:
    for name in ("c1-consumer-10001", "p1-producer-10002"):
        billing, watch = watched.node(name).clients
        assert (billing.name, billing.key_file) == ("billing", "/etc/wsqueue/client.billing")
        assert (billing.publish, billing.max_connections, billing.status) == (("orders/*",), 5, False)
        assert (watch.name, watch.publish, watch.status) == ("watch", (), True)
        assert plain.node(name).clients == []


def test_consumers_have_the_limits_of_some_topics(watched: Written) -> None:
    for name in ("c1-consumer-10001", "c3-consumer-10001"):
        node = watched.node(name)
        assert isinstance(node, ConsumerConfig)
        assert node.retention == Retention(
            max_bytes=10**9,
            topics=(
                TopicRetention(match="state/*", max_messages_per_topic=1, max_age_seconds=604800.0),
                TopicRetention(match="*", max_bytes_per_topic=10**6),
            ),
        )


def test_nodes_know_each_other_in_the_order_of_the_inventory(plain: Written, watched: Written) -> None:
    consumer, producer = plain.node("c1-consumer-10001"), plain.node("p1-producer-10002")
    assert consumer.monitoring.consumers == ALL_CONSUMERS
    assert isinstance(consumer, ConsumerConfig)
    assert isinstance(producer, ProducerConfig)
    # It knows the consumers of its links.
    assert producer.monitoring.consumers == []
    assert [str(address) for address in producer.all_consumers] == ALL_CONSUMERS
    assert consumer.monitoring.producers == producer.monitoring.producers == ALL_PRODUCERS
    secure = watched.node("c1-consumer-10001")
    assert secure.monitoring.consumers == [f"wss://{address}" for address in ALL_CONSUMERS]
    assert secure.limits.max_connections == 100


def test_with_a_monitoring_host_each_instance_listens_for_it(watched: Written) -> None:
    assert {
        name: watched.monitoring(name).listen
        for name in ("c1-consumer-10001", "c1-consumer-10003", "p1-producer-10002", "p1-producer-10004")
    } == {
        "c1-consumer-10001": ["wss://192.0.2.1:20001"],
        "c1-consumer-10003": ["wss://192.0.2.1:20003"],
        "p1-producer-10002": ["wss://192.0.2.2:20002"],
        "p1-producer-10004": ["wss://192.0.2.2:20004"],
    }
    assert watched.monitoring("c3-consumer-10001").listen == ["wss://[2001:db8::3]:20001"]
    # The address of the name on that host is not known here.
    assert watched.monitoring("c2.example.com-consumer-10001").listen == ["wss://0.0.0.0:20001"]
    assert watched.monitoring("c1-consumer-10001").pages == "none"


def test_prometheus_asks_each_instance_where_it_listens(watched: Written) -> None:
    ours, other = watched.prometheus()["scrape_configs"]
    assert [(some["targets"], some["labels"]["instance"]) for some in ours["static_configs"]] == [
        (["192.0.2.1:20001"], "c1:10001"),
        (["192.0.2.1:20003"], "c1:10003"),
        (["c2.example.com:20001"], "c2.example.com:10001"),
        (["[2001:db8::3]:20001"], "c3:10001"),
        (["192.0.2.2:20002"], "p1:10002"),
        (["192.0.2.2:20004"], "p1:10004"),
    ]
    assert (ours["job_name"], ours["scheme"]) == ("wsqueue", "https")
    assert set(ours["tls_config"]) == {"ca_file", "cert_file", "key_file"}
    assert other["job_name"] == "other"
    assert watched.prometheus()["rule_files"] == ["/etc/prometheus/wsqueue/wsqueue.rules.yml"]
    assert "192.0.2.9:9093" in str(watched.prometheus()["alerting"])
    assert "--web.listen-address=127.0.0.1:9090 " in (watched.directory / "default").read_text()


def test_on_loopback_the_monitoring_needs_no_certificate(local: Written) -> None:
    assert local.monitoring("c1-consumer-10003").listen == [
        "127.0.0.1:10103",
        "[::1]:10103",
        "wss://192.0.2.77:10103",
    ]
