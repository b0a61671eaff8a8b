"""wsqueue: a topic queue over WebSockets, and its asyncio client."""

import logging

from .client import Client, Message, Subscription, connect
from .config import Tls
from .errors import (
    AuthenticationError,
    CloseCode,
    ConfigError,
    ConnectError,
    InvalidMessage,
    WsqueueError,
)
from .hello import Order, PreSharedKey
from .version import __version__

__all__ = [
    "AuthenticationError",
    "Client",
    "CloseCode",
    "ConfigError",
    "ConnectError",
    "InvalidMessage",
    "Message",
    "Order",
    "PreSharedKey",
    "Subscription",
    "Tls",
    "WsqueueError",
    "__version__",
    "connect",
]

# What a library logs is the application's to show (docs.python.org/3/howto/logging.html).
logging.getLogger(__name__).addHandler(logging.NullHandler())
