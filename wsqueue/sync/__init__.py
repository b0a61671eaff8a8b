"""The blocking client, for programs without an event loop: `wsqueue.sync.connect`.

::

    with wsqueue.sync.connect("/etc/wsqueue/demo.toml") as client:
        client.publish("news", "hello")
        for message in client.subscribe("news"):
            print(message.topic, message.data)

May import: client, net, config, protocol.
"""

from .client import Client, connect
from .subscription import (
    GroupMessage,
    GroupSubscription,
    ReaderMessage,
    ReaderSubscription,
    Subscription,
)

__all__ = [
    "Client",
    "GroupMessage",
    "GroupSubscription",
    "ReaderMessage",
    "ReaderSubscription",
    "Subscription",
    "connect",
]
