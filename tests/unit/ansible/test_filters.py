"""The filters of the roles, without Ansible."""

from __future__ import annotations

import importlib.util
import itertools
import tomllib
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import ROOT

# By its path: `ansible` is the name of a package too.
_SPEC = importlib.util.spec_from_file_location(
    "cluster", ROOT / "ansible" / "plugins" / "filter" / "cluster.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
cluster: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(cluster)

HOSTS: list[dict[str, Any]] = [
    {"inventory_hostname": "c1", "ansible_host": "192.0.2.1", "wsqueue_consumer_ports": [10001, "10003"]},
    {"inventory_hostname": "c2.example.com"},
    {"inventory_hostname": "c3", "ansible_host": "192.0.2.3", "wsqueue_address": "2001:db8::3"},
]
ANY = "0.0.0.0"  # noqa: S104 - nothing listens
KEYS = st.lists(st.sampled_from("abcd"), max_size=3, unique=True)


def host(name: str, **keys: Any) -> dict[str, Any]:
    """Return the keys of a host that has the inventory's keys, but for those that are given."""
    known = {"psk": ["k"], "deployed_psk": ["k"], "node_psk": ["n"], "deployed_node_psk": ["n"]}
    return {"name": name, "is_node": True, "one_key": False, "clients": {}} | known | keys


class TestAddresses:
    def test_endpoints_in_the_order_of_the_hosts(self) -> None:
        expected = ["192.0.2.1:10001", "192.0.2.1:10003", "c2.example.com:10001", "[2001:db8::3]:10001"]
        assert cluster.endpoints(HOSTS, "consumer") == expected
        assert cluster.endpoints(HOSTS[1:2], "producer", "wss://") == ["wss://c2.example.com:10002"]

    def test_no_host(self) -> None:
        with pytest.raises(ValueError, match="expected the variables of a host"):
            cluster.address_of({})

    def test_the_servers_of_the_log(self) -> None:
        hosts = [*HOSTS[:1], HOSTS[2] | {"wsqueue_engine_port": "4333", "wsqueue_engine_name": "new"}]
        addresses = cluster.engine_addresses(hosts, "wsqueue_engine_port", "tls://")
        assert addresses == ["tls://192.0.2.1:4222", "tls://[2001:db8::3]:4333"]
        assert cluster.engine_addresses(hosts[:1], "wsqueue_engine_route_port") == ["192.0.2.1:6222"]
        assert cluster.engine_names(hosts) == ["c1", "new"]

    def test_used_twice(self) -> None:
        assert cluster.used_twice(["a:1", "b:1", "a:2"]) == []
        assert cluster.used_twice(["wss://a:1", "a:2", "a:1"]) == ["a:1"]
        assert cluster.used_twice(["[::1]:1", "[::1]:101"], [0, "100"]) == ["[::1]:101"]

    def test_listeners(self) -> None:
        assert cluster.node_listeners([ANY, "[::]"], "1") == [f"{ANY}:1", "[::]:1"]
        assert cluster.node_listeners([ANY], 1, "wss://", "100") == [f"wss://{ANY}:1", f"{ANY}:101"]
        here, there = (
            ["127.0.0.1:1", "[::1]:1", "localhost:1", "wss://127.0.0.1:1"],
            ["192.0.2.1:1", "node:1"],
        )
        assert cluster.exposed([*here, "wss://node:1", *there]) == there
        assert cluster.exposed([*here, "wss://node:1", *there], "100") == ["wss://node:1", *there]
        pages = cluster.pages_listeners(["127.0.0.1", "[::1]", "192.0.2.1"], 1, "wss://", 100)
        assert pages == ["127.0.0.1:101", "[::1]:101", "wss://192.0.2.1:101"]
        assert cluster.pages_listeners(["192.0.2.1"], 1, "", 0) == []

    def test_targets(self) -> None:
        groups = {"consumer": HOSTS[1:], "producer": [HOSTS[0] | {"wsqueue_pages_offset": 0}]}
        assert cluster.pages_targets(groups, "10000") == [
            {"instance": "c2.example.com:10001", "target": "c2.example.com:20001"},
            {"instance": "c3:10001", "target": "[2001:db8::3]:20001"},
        ]

    @pytest.mark.parametrize(
        ("address", "listens", "url", "name"),
        [
            ("192.0.2.1", "192.0.2.1", "https://192.0.2.1", "IP:192.0.2.1"),
            ("2001:db8::1", "[2001:db8::1]", "https://[2001:db8::1]", "IP:2001:db8::1"),
            ("c1.example.com", ANY, "https://c1.example.com", "DNS:c1.example.com"),
            ("10.example.com", ANY, "https://10.example.com", "DNS:10.example.com"),
        ],
    )
    def test_an_address_in_all_its_forms(self, address: str, listens: str, url: str, name: str) -> None:
        assert cluster.address_to_listen_at(address) == listens
        assert cluster.url_of_host([ANY], address, tls=True) == url
        assert cluster.alternative_names([address]) == [name]

    def test_the_url_without_tls(self) -> None:
        urls = [cluster.url_of_host([one], "h", tls=False) for one in (ANY, "[::]", "192.0.2.1")]
        assert urls == ["http://127.0.0.1", "http://[::1]", "http://192.0.2.1"]


class TestKeys:
    @pytest.mark.parametrize("value", [" a\n\nb\na\n", ["a", "b"], ["a\nb", " a "]])
    def test_a_list(self, value: str | list[str]) -> None:
        assert cluster.key_list(value) == ["a", "b"]
        assert cluster.key_list("") == []

    @given(wanted=KEYS, deployed=st.lists(KEYS, min_size=1, max_size=3))
    def test_no_step_uses_a_key_that_a_host_does_not_accept(
        self, wanted: list[str], deployed: list[list[str]]
    ) -> None:
        elsewhere = [key for keys in deployed for key in keys]
        accept, use, only = (
            [cluster.keys_to_write(wanted, keys, step, elsewhere) for keys in deployed]
            for step in ("accept", "use", "only")
        )
        assert (
            only == [cluster.keys_to_write(wanted, keys, "") for keys in deployed] == [wanted] * len(deployed)
        )
        # While hosts change from one step to the next, and whatever a change that broke off has left.
        for used, accepted in itertools.chain(
            itertools.product(deployed + accept, accept), itertools.product(accept + use, accept + use)
        ):
            assert set(used[:1]) <= set(accepted)
        if wanted:
            assert {keys[0] for keys in use + only} == {wanted[0]}

    def test_the_first_keys_wait_for_the_last_step(self) -> None:
        steps = ("accept", "use", "only")
        written = [cluster.keys_to_write(["a"], [], step, wait=True) for step in steps]
        assert written == [[], [], ["a"]]
        # A change that broke off in the last step has left the key on another host.
        written = [cluster.keys_to_write(["a"], [], step, ["a"], wait=True) for step in steps]
        assert written == [["a"]] * 3

    def test_an_unknown_step(self) -> None:
        with pytest.raises(ValueError, match="expected accept, use, only or nothing"):
            cluster.keys_to_write([], [], "both")

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            ({}, ""),
            ({"psk": []}, "wsqueue_psk is not set on all hosts"),
            ({"psk": ["other"]}, "wsqueue_psk is not the same on all hosts"),
            ({"node_psk": []}, "wsqueue_node_psk is not the same on all hosts with nodes"),
            ({"node_psk": [], "is_node": False}, ""),
        ],
    )
    def test_problems_of_a_host(self, keys: dict[str, Any], problem: str) -> None:
        told = cluster.key_problem([host("a"), host("b", **keys)])
        assert told.partition(";")[0] == problem

    @pytest.mark.parametrize(
        ("keys", "problem"),
        [
            ({"psk": ["k", "pre-shared-key"]}, "wsqueue_psk is the original nodes' default, which everybody"),
            (
                {"node_psk": ["n", "k"]},
                "wsqueue_node_psk has a key of wsqueue_psk; enter what `wsqueue keygen`",
            ),
            ({"node_psk": []}, "wsqueue_node_psk is not set, so every client could act as a node"),
            ({"node_psk": [], "one_key": True}, ""),
            (
                {"one_key": True},
                "wsqueue_node_psk is set although wsqueue_one_key_for_all says otherwise",
            ),
            ({"node_psk": [], "is_node": False}, ""),
        ],
    )
    def test_problems_of_all_hosts(self, keys: dict[str, Any], problem: str) -> None:
        told = cluster.key_problem([host("a", **keys), host("b", **keys)])
        assert told.startswith(problem)
        assert bool(told) == bool(problem)

    def test_a_missing_key_of_the_nodes_has_two_ways_out(self) -> None:
        told = cluster.key_problem([host("a", node_psk=[])])
        assert "`wsqueue keygen` prints in a vault" in told
        assert "or set wsqueue_one_key_for_all: true" in told

    @pytest.mark.parametrize(
        ("keys", "name"),
        [
            ({"psk": ["new", "k"], "deployed_psk": ["k", "new"]}, ""),
            ({"deployed_psk": [], "deployed_node_psk": []}, ""),
            ({"psk": ["new"]}, "wsqueue_psk"),
            ({"psk": ["new", "k"]}, "wsqueue_psk"),
            ({"node_psk": ["new"]}, "wsqueue_node_psk"),
            ({"node_psk": []}, "wsqueue_node_psk"),
            ({"node_psk": ["new"], "is_node": False}, ""),
            # New hosts, or the first key of the nodes.
            ({"deployed_node_psk": []}, ""),
        ],
    )
    def test_hosts_with_other_keys(self, keys: dict[str, Any], name: str) -> None:
        told = cluster.key_mismatch([host("a"), host("b", **keys), host("c", **keys)])
        assert told == (f"{name} is not the key that is on b, c" if name else "")

    @pytest.mark.parametrize(
        ("keys", "first"),
        [
            ({"deployed_node_psk": []}, True),
            # A cluster that gives it up, or never had one; one that has it; and a fresh one.
            ({"node_psk": [], "deployed_node_psk": []}, False),
            ({}, False),
            ({"deployed_psk": [], "deployed_node_psk": []}, False),
        ],
    )
    def test_the_first_key_of_the_nodes(self, keys: dict[str, Any], first: bool) -> None:
        client = host("c", is_node=False, node_psk=[], deployed_node_psk=[])
        hosts = [host("a", **keys), host("b", **keys), client]
        assert cluster.gets_first_node_key(hosts) == first
        # One more host, or a run that broke off.
        new = host("d", **keys | {"deployed_psk": [], "deployed_node_psk": []})
        assert cluster.gets_first_node_key([*hosts, new]) == first


class TestClients:
    """Clients with keys of their own."""

    CLIENTS: ClassVar[dict[Any, Any]] = {
        "watch": {"key": "w", "status": True},
        "billing": {"key": ["new", "old"], "publish": ["orders/*"]},
        2026: {"key": "y"},
    }

    def test_their_tables_and_keys(self) -> None:
        assert cluster.client_tables(self.CLIENTS) == [
            {"name": "2026", "key_file": "/etc/wsqueue/client.2026"},
            {"name": "billing", "key_file": "/etc/wsqueue/client.billing", "publish": ["orders/*"]},
            {"name": "watch", "key_file": "/etc/wsqueue/client.watch", "status": True},
        ]
        assert cluster.client_keys(self.CLIENTS) == {
            "/etc/wsqueue/client.2026": "y",
            "/etc/wsqueue/client.billing": "new\nold",
            "/etc/wsqueue/client.watch": "w",
        }
        assert cluster.client_tables({}) == []

    @pytest.mark.parametrize(
        ("clients", "problem"),
        [
            ({}, ""),
            (CLIENTS, ""),
            (["billing"], "wsqueue_clients is no mapping"),
            ({"billing": "key"}, "wsqueue_clients.billing is no mapping"),
            ({"billing": {"publish": ["*"]}}, "wsqueue_clients.billing has no key"),
            ({"billing": {"key": 1}}, "wsqueue_clients.billing has no key"),
            ({"billing": {"key": []}}, "wsqueue_clients.billing has no key"),
            ({"a": {"key": "x", "key_file": "/x"}}, "wsqueue_clients.a has key_file, which the role sets"),
            ({"a": {"key": ["x", "k"]}}, "wsqueue_clients.a has a key of wsqueue_psk"),
            ({"a": {"key": "n"}}, "wsqueue_clients.a has a key of wsqueue_node_psk"),
            ({"a": {"key": "pre-shared-key"}}, "wsqueue_clients.a has the original nodes' default"),
            (
                {"a": {"key": "x"}, "b": {"key": ["y", "x"]}},
                "wsqueue_clients.b has a key of wsqueue_clients.a",
            ),
        ],
    )
    def test_problems_of_their_keys(self, clients: Any, problem: str) -> None:
        hosts = [host("a", clients=clients), host("b", clients=clients), host("c", is_node=False)]
        told = cluster.client_problem(hosts)
        assert told.startswith(problem)
        assert bool(told) == bool(problem)

    def test_all_nodes_have_the_same(self) -> None:
        hosts = [host("a", clients=self.CLIENTS), host("b")]
        assert cluster.client_problem(hosts) == "wsqueue_clients is not the same on all hosts with nodes"
        assert cluster.client_problem([host("c", is_node=False)]) == ""


def test_renamed_variables() -> None:
    renamed = {"old": "new", "older": "newer"}
    assert cluster.renamed_problem(["new", "other"], renamed) == ""
    told = "Variables have other names: old is now new, older is now newer; rename them in the inventory"
    assert cluster.renamed_problem(["older", "old"], renamed) == told


def test_settings_as_toml() -> None:
    settings = {
        "role": 'a "quoted" word',
        "nothing": None,
        "tls": {},
        "limits": {"seconds": 0.5, "nothing": None},
        "retention": {"jetstream": {"servers": ["a:1"], "nothing": None}, "mode": "jetstream", "empty": {}},
        "outer": {"inner": {"number": 1}},
        "listen": ["a:1", "b:2"],
        "none": [],
        "on": True,
        "clients": [{"name": "a", "publish": ["b/*"], "nothing": None}, {"nothing": None}, {"name": "c"}],
    }
    text = cluster.toml(settings)
    assert tomllib.loads(text) == {
        "role": 'a "quoted" word',
        "listen": ["a:1", "b:2"],
        "none": [],
        "on": True,
        "limits": {"seconds": 0.5},
        "retention": {"mode": "jetstream", "jetstream": {"servers": ["a:1"]}},
        "outer": {"inner": {"number": 1}},
        "clients": [{"name": "a", "publish": ["b/*"]}, {}, {"name": "c"}],
    }
    assert '\n    "b:2",\n' in text


def test_ansible_gets_all_functions() -> None:
    filters = cluster.FilterModule().filters()
    public = {name for name, value in vars(cluster).items() if getattr(value, "__module__", "") == "cluster"}
    assert set(filters) == {name for name in public if not name.startswith("_")} - {
        "FilterModule",
        "address_of",
    }
