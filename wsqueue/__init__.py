"""wsqueue: a topic queue over WebSockets, and its asyncio client."""

import logging

from .client.client import Client, Subscription, connect
from .client.values import Gap, Message, Position
from .config.model import Tls
from .errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    GapError,
    InvalidMessage,
    PublishError,
    WindowFull,
    WsqueueError,
)
from .protocol.close import CloseCode
from .protocol.keys import Order, PreSharedKey
from .version import __version__

__all__ = [
    "AuthenticationError",
    "Client",
    "CloseCode",
    "ConfigError",
    "ConnectError",
    "Gap",
    "GapError",
    "InvalidMessage",
    "Message",
    "Order",
    "Position",
    "PreSharedKey",
    "PublishError",
    "Subscription",
    "Tls",
    "WindowFull",
    "WsqueueError",
    "__version__",
    "connect",
]

# What a library logs is the application's to show (docs.python.org/3/howto/logging.html).
logging.getLogger(__name__).addHandler(logging.NullHandler())
