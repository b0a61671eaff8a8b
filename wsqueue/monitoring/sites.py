"""Which sites a browser may use a node from: the names of its cluster, and the origins of its configuration.

A browser says in `Origin` which site sent a request, and in `Host` by which name it calls the node. A site
whose name is made to lead to a node (DNS rebinding) has that name in both.
"""

from __future__ import annotations

import re
import socket
from urllib.parse import urlsplit

from ..config.addresses import is_ip, is_loopback
from ..config.model import NodeConfig


class Sites:
    """Know the names of a cluster and the origins that may use its nodes.

    Args:
        config: Configuration of the node.
    """

    def __init__(self, config: NodeConfig) -> None:
        addresses = [*config.listeners, *config.page_listeners, *config.peers]
        self._names = {address.host.lower() for address in addresses}
        self._names |= {name.lower() for name in config.hosts} | {socket.gethostname().lower()}
        self._origins = {origin.lower() for origin in config.origins}

    def trusts_host(self, host: str) -> bool:
        """Return True if a `Host` is an IP address, `localhost` or a name of the cluster.

        The first two need no DNS. Without the header the request is not of a browser.
        """
        name = name_in(host)
        return name in ("", "localhost") or name in self._names or is_ip(name)

    def trusts_origin(self, origin: str | None, host: str) -> bool:
        """Return True if the site that sent a request may use this node.

        These may: sites at the host that the request names, if `trusts_host`; sites at a host of the cluster,
        as its status pages; sites on the browser's own machine; and those of the configuration.

        Args:
            origin: The `Origin` of the request, None if it has none and so is not of a browser.
            host: Its `Host`.
        """
        if origin is None or origin.lower() in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            name = parts.hostname or ""
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or not name:
            return False
        if name in self._names or is_loopback(name):
            return True
        return name == name_in(host) and self.trusts_host(host)


def name_in(host: str) -> str:
    """Return the name or IP address in a `Host`, without its port and brackets."""
    return re.sub(r":[0-9]*$", "", host).strip("[]").lower()
