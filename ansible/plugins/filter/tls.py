"""Filter that checks certificates before a node would refuse them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible_collections.wsqueue.wsqueue.plugins.plugin_utils.handshake import check_certificates


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        return {"certificate_check": certificate_check}


def certificate_check(
    ca: str, node: str, client: str, name: str, client_certificates: bool
) -> dict[str, Any]:
    """Return the problem with the certificates of a host, or "" and the days until the first expires."""
    problem, days = check_certificates(
        node=node, client=client, ca=ca, name=name, client_certificates=client_certificates
    )
    return {"problem": problem, "days": days}
