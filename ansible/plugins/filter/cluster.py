"""Filters that compute addresses, keys and configuration files from variables of the inventory.

All are plain functions over strings, lists and mappings. A host is a mapping of its variables, as `hostvars`
has them.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Host = Mapping[str, Any]
Number = int | str
"""Ports and offsets: an inventory may have them as text."""

DEFAULT_PORTS = {"consumer": [10001], "producer": [10002]}
"""Ports of a host's instances; the same as the defaults of wsqueue_consumer_ports, wsqueue_producer_ports."""

ENGINE_PORTS = {"wsqueue_engine_port": 4222, "wsqueue_engine_route_port": 6222}
"""Ports of a host's NATS server; the same as the defaults of the role wsqueue_engine."""

TLS = "wss://"
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - where a node may be told to listen
"""The loopback address of each address that means all addresses."""

PUBLIC_PSK = "pre-shared-key"
"""The default key of the original nodes, which is no secret."""

NEW_KEY = (
    "enter what `wsqueue keygen` prints in a vault, as"
    " ansible/inventory/example/group_vars/all/vault.yml.example says"
)

CLIENT_FILE = "/etc/wsqueue/client."
"""Begin of the name of the file with the key of a client."""


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        functions = (
            address_to_listen_at,
            alternative_names,
            client_keys,
            client_problem,
            client_tables,
            endpoints,
            engine_addresses,
            engine_names,
            exposed,
            gets_first_node_key,
            key_list,
            key_mismatch,
            key_problem,
            keys_to_write,
            node_listeners,
            pages_listeners,
            pages_targets,
            renamed_problem,
            toml,
            url_of_host,
            used_twice,
        )
        return {function.__name__: function for function in functions}


# --- Addresses ---


def endpoints(hosts: Iterable[Host], kind: str, scheme: str = "") -> list[str]:
    """Return host:port of all instances of a kind, in the order of the hosts."""
    return [f"{scheme}{_bracketed(address_of(host))}:{port}" for host, port in _instances(hosts, kind)]


def engine_addresses(hosts: Iterable[Host], port: str, scheme: str = "") -> list[str]:
    """Return host:port of all NATS servers, in the order of the hosts.

    Args:
        hosts: The hosts of the servers.
        port: The variable that has the port.
        scheme: Comes before each.
    """
    return [
        f"{scheme}{_bracketed(address_of(host))}:{int(host.get(port, ENGINE_PORTS[port]))}" for host in hosts
    ]


def engine_names(hosts: Iterable[Host]) -> list[str]:
    """Return the names that NATS servers have among each other."""
    return [str(host.get("wsqueue_engine_name", host["inventory_hostname"])) for host in hosts]


def address_of(host: Host) -> str:
    """Return the name or address at which other hosts reach this one."""
    for name in ("wsqueue_address", "ansible_host", "inventory_hostname"):
        if host.get(name):
            return str(host[name])
    raise ValueError("a host has no inventory_hostname; expected the variables of a host")


def used_twice(addresses: Sequence[str], offsets: Iterable[Number] = ()) -> list[str]:
    """Return addresses at which more than one listener would listen.

    Args:
        addresses: host:port of all nodes, with or without wss://.
        offsets: Each node listens at its port plus each of these too, unless it is 0.
    """
    shifts = [0, *(int(offset) for offset in offsets if int(offset))]
    places = [address.removeprefix(TLS).rpartition(":") for address in addresses]
    found = [f"{host}:{int(port) + shift}" for host, _, port in places for shift in shifts]
    return [address for address in dict.fromkeys(found) if found.count(address) > 1]


def exposed(addresses: Iterable[str], plain_offset: Number = 0) -> list[str]:
    """Return the addresses of nodes at which other hosts speak without TLS.

    Args:
        addresses: host:port of all nodes, with or without wss://.
        plain_offset: Each node listens without TLS at its port plus this too, unless it is 0.
    """
    return [
        address
        for address in addresses
        if (int(plain_offset) or not address.startswith(TLS)) and not _is_loopback(address.removeprefix(TLS))
    ]


def node_listeners(
    addresses: Iterable[str], port: Number, scheme: str = "", plain_offset: Number = 0
) -> list[str]:
    """Return where an instance listens; with an offset, at port + offset without TLS too."""
    found = []
    for address in addresses:
        found.append(f"{scheme}{address}:{port}")
        if int(plain_offset):
            found.append(f"{address}:{int(port) + int(plain_offset)}")
    return found


def pages_listeners(
    addresses: Iterable[str], port: Number, scheme: str = "", offset: Number = 0
) -> list[str]:
    """Return where an instance listens for its pages only; on loopback never with TLS."""
    if not int(offset):
        return []
    return [
        f"{'' if _is_loopback(address) else scheme}{address}:{int(port) + int(offset)}"
        for address in addresses
    ]


def pages_targets(groups: Mapping[str, Iterable[Host]], offset: Number = 0) -> list[dict[str, str]]:
    """Return the instances that Prometheus asks: their names, and where they listen for their pages.

    Args:
        groups: The hosts of each kind: consumer, producer.
        offset: The wsqueue_pages_offset of hosts whose inventory has none.
    """
    found = []
    for kind in DEFAULT_PORTS:
        for host, port in _instances(groups.get(kind, ()), kind):
            own = int(host.get("wsqueue_pages_offset", offset))
            if own:
                target = f"{_bracketed(address_of(host))}:{port + own}"
                found.append({"instance": f"{host['inventory_hostname']}:{port}", "target": target})
    return found


def address_to_listen_at(address: str) -> str:
    """Return the address itself; for a name, whose address on its host isn't known, return all addresses."""
    return _bracketed(address) if _is_ip(address) else next(iter(ANY_ADDRESS))


def url_of_host(listen: Sequence[str], address: str, tls: bool) -> str:
    """Return the URL, without a port, at which a host reaches its own instances.

    With TLS that is the address in the certificate.
    """
    if tls:
        return f"https://{_bracketed(address)}"
    return f"http://{ANY_ADDRESS.get(listen[0], listen[0])}"


def alternative_names(names: Iterable[str]) -> list[str]:
    """Return names and addresses of a host as a certificate has them: DNS:name, IP:address."""
    return [f"{'IP' if _is_ip(name) else 'DNS'}:{name}" for name in names]


def _instances(hosts: Iterable[Host], kind: str) -> Iterator[tuple[Host, int]]:
    for host in hosts:
        for port in host.get(f"wsqueue_{kind}_ports", DEFAULT_PORTS[kind]):
            yield host, int(port)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "[::1]", "localhost:"))


# --- Keys ---


def key_list(value: str | Iterable[str]) -> list[str]:
    """Return the keys in a variable, a string or a list, or in a file; each line is a key."""
    texts = [value] if isinstance(value, str) else value
    lines = (line.strip() for text in texts for line in text.split("\n"))
    return list(dict.fromkeys(line for line in lines if line))


def keys_to_write(
    wanted: Sequence[str],
    deployed: Sequence[str],
    step: str,
    elsewhere: Sequence[str] = (),
    wait: bool = False,
) -> list[str]:
    """Return the keys that a host gets, of which it uses the first and accepts all.

    While keys change, first all hosts accept all keys that any host has, then all use the new ones, then the
    old keys go. So in no step does a host use a key that another host doesn't accept, even if hosts have
    different keys because an earlier change broke off.

    Args:
        wanted: The keys in the inventory.
        deployed: The keys on the host.
        step: "accept", "use" or "only"; "" where keys don't change.
        elsewhere: The keys on all hosts.
        wait: Write none before the last step where no host has such a key.

    Raises:
        ValueError: There is no such step.
    """
    if step in ("", "only"):
        return list(wanted)
    if step not in ("accept", "use"):
        raise ValueError(f"wsqueue_key_step is {step!r}; expected accept, use, only or nothing")
    if wait and not deployed and not elsewhere:
        return []
    own = [*deployed, *wanted] if step == "accept" else [*wanted, *deployed]
    return list(dict.fromkeys([*own, *elsewhere]))


def key_problem(hosts: Sequence[Mapping[str, Any]]) -> str:
    """Return the problem with the keys of the inventory, "" if there is none.

    Args:
        hosts: Of each host: `is_node`, `one_key` if clients and nodes shall share one, and the keys `psk` and
            `node_psk`.
    """
    psks = _different(host["psk"] for host in hosts)
    if [] in psks:
        return f"wsqueue_psk is not set on all hosts; {NEW_KEY}"
    if len(psks) > 1:
        return "wsqueue_psk is not the same on all hosts"
    if any(PUBLIC_PSK in keys for keys in psks):
        return f"wsqueue_psk is the original nodes' default, which everybody knows; {NEW_KEY}"
    nodes = [host for host in hosts if host["is_node"]]
    node_psks = _different(host["node_psk"] for host in nodes)
    if len(node_psks) > 1:
        return "wsqueue_node_psk is not the same on all hosts with nodes"
    return _node_key_problem(nodes[0]) if nodes else ""


def _node_key_problem(node: Mapping[str, Any]) -> str:
    """Return the problem with the key of the nodes, which is the same on all hosts, "" if there is none."""
    if not node["node_psk"] and not node["one_key"]:
        return (
            f"wsqueue_node_psk is not set, so every client could act as a node; {NEW_KEY}, and site.yml"
            " gives it to the nodes, or set wsqueue_one_key_for_all: true, as original nodes need it"
        )
    if node["node_psk"] and node["one_key"]:
        return "wsqueue_node_psk is set although wsqueue_one_key_for_all says otherwise; give up one of them"
    if set(node["psk"]) & set(node["node_psk"]):
        return f"wsqueue_node_psk has a key of wsqueue_psk; {NEW_KEY}"
    return ""


def key_mismatch(hosts: Sequence[Mapping[str, Any]]) -> str:
    """Return which hosts have other keys than the inventory, "" if none has.

    Until all hosts have the new keys, these hosts would refuse the others, or be refused.

    Args:
        hosts: Of each host: its `name`, `is_node`, and the keys `psk`, `deployed_psk`, `node_psk`,
            `deployed_node_psk`.
    """
    deployed = [host for host in hosts if host["deployed_psk"]]
    psk = [host["name"] for host in deployed if _refuse(host["psk"], host["deployed_psk"])]
    if psk:
        return f"wsqueue_psk is not the key that is on {', '.join(psk)}"
    # A host without a key of the nodes is new, or gets its first one, for which gets_first_node_key is.
    node_psk = [
        host["name"]
        for host in deployed
        if host["is_node"]
        and host["deployed_node_psk"]
        and _refuse(host["node_psk"], host["deployed_node_psk"])
    ]
    return f"wsqueue_node_psk is not the key that is on {', '.join(node_psk)}" if node_psk else ""


def gets_first_node_key(hosts: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if nodes that use one key for all get a key of their own, in a step after all others.

    Args:
        hosts: Of each host: `is_node`, and the keys `node_psk`, `deployed_psk`, `deployed_node_psk`.
    """
    nodes = [host for host in hosts if host["is_node"]]
    return (
        any(host["node_psk"] for host in nodes)
        and any(host["deployed_psk"] for host in nodes)
        and not any(host["deployed_node_psk"] for host in nodes)
    )


def client_tables(clients: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the tables `[[clients]]` of a node for the clients in the inventory, without their keys."""
    return [
        {"name": str(name), "key_file": f"{CLIENT_FILE}{name}"}
        | {key: value for key, value in clients[name].items() if key != "key"}
        for name in sorted(clients, key=str)
    ]


def client_keys(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the text of the key file of each client in the inventory."""
    return {f"{CLIENT_FILE}{name}": "\n".join(key_list(client["key"])) for name, client in clients.items()}


def client_problem(hosts: Sequence[Mapping[str, Any]]) -> str:
    """Return the problem with the keys of the clients in the inventory, "" if there is none.

    A node checks the rest, with its configuration.

    Args:
        hosts: Of each host: `is_node`, `clients` with their keys, and the keys `psk` and `node_psk`.
    """
    nodes = [host for host in hosts if host["is_node"]]
    if any(host["clients"] != nodes[0]["clients"] for host in nodes):
        return "wsqueue_clients is not the same on all hosts with nodes"
    clients = nodes[0]["clients"] if nodes else {}
    if not isinstance(clients, Mapping):
        return "wsqueue_clients is no mapping: expected the names of clients, each with its key and rights"
    owners = {PUBLIC_PSK: "the original nodes' default, which everybody knows"}
    for host in nodes:
        owners |= dict.fromkeys(host["psk"], "a key of wsqueue_psk")
        owners |= dict.fromkeys(host["node_psk"], "a key of wsqueue_node_psk")
    for name, client in clients.items():
        where = f"wsqueue_clients.{name}"
        if problem := _client_problem(client, owners):
            return f"{where} {problem}"
        owners |= dict.fromkeys(key_list(client["key"]), f"a key of {where}")
    return ""


def _client_problem(client: object, owners: Mapping[str, str]) -> str:
    """Return the problem with a client, where others own some keys, "" if there is none."""
    if not isinstance(client, Mapping):
        return "is no mapping: expected a key and rights"
    if chosen := sorted({"name", "key_file"} & set(client)):
        return f"has {' and '.join(chosen)}, which the role sets: expected only a key and rights"
    key = client.get("key")
    keys = key_list(key) if isinstance(key, (str, Sequence)) else []
    if not keys:
        return "has no key: expected what `wsqueue keygen` prints"
    if taken := [owners[one] for one in keys if one in owners]:
        return f"has {taken[0]}: expected a key of its own, as `wsqueue keygen` prints it"
    return ""


def _refuse(some: Sequence[str], others: Sequence[str]) -> bool:
    """Return True if an end with some keys and an end with others would refuse one another."""
    return not some or not others or some[0] not in others or others[0] not in some


def _different(lists: Iterable[Sequence[str]]) -> list[list[str]]:
    return [list(keys) for keys in dict.fromkeys(tuple(keys) for keys in lists)]


# --- Variables and files ---


def renamed_problem(variables: Iterable[str], renamed: Mapping[str, str]) -> str:
    """Return a sentence that names the old variables that are set and their new names, "" if none is set."""
    present = set(variables)
    found = [f"{old} is now {new}" for old, new in renamed.items() if old in present]
    return f"Variables have other names: {', '.join(found)}; rename them in the inventory" if found else ""


def toml(settings: Mapping[str, Any]) -> str:
    """Return settings as TOML, without those that are None and without empty tables.

    Strings, numbers and booleans have the syntax of JSON. Each item of a list has its line: diffs stay short.
    """
    return "\n".join(_table(settings))


def _table(settings: Mapping[str, Any], name: str = "", header: str = "") -> list[str]:
    present = {key: value for key, value in settings.items() if value is not None}
    lines = [_setting(key, value) for key, value in present.items() if not _has_tables(value)]
    # An empty table says nothing, but an empty one of a list is an item of it.
    if header and (lines or header.startswith("[[")):
        lines = ["", header, *lines]
    for key, value in present.items():
        inner = f"{name}.{key}" if name else key
        if isinstance(value, Mapping):
            lines += _table(value, inner, f"[{inner}]")
        elif _has_tables(value):
            for table in value:
                lines += _table(table, inner, f"[[{inner}]]")
    return lines


def _has_tables(value: object) -> bool:
    """Return True for a table, and for a list of tables."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return bool(value) and all(isinstance(item, Mapping) for item in value)
    return isinstance(value, Mapping)


def _setting(key: str, value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        items = "".join(f"    {json.dumps(item)},\n" for item in value)
        return f"{key} = [\n{items}]" if items else f"{key} = []"
    return f"{key} = {json.dumps(value)}"
