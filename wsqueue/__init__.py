"""wsqueue: a topic queue over WebSockets, and its asyncio client."""

import logging

from .client.client import Client, connect
from .client.group import GroupMessage, GroupSubscription
from .client.reader import ReaderMessage, ReaderSubscription
from .client.subscription import Subscription
from .client.values import Gap, Message, Position
from .config.model import ClientConfig, Limits, Tls
from .config.tokens import Token
from .errors import (
    AuthenticationError,
    ConfigError,
    ConnectError,
    GapError,
    InvalidMessage,
    NotAllowedError,
    OwnerError,
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
    "ClientConfig",
    "CloseCode",
    "ConfigError",
    "ConnectError",
    "Gap",
    "GapError",
    "GroupMessage",
    "GroupSubscription",
    "InvalidMessage",
    "Limits",
    "Message",
    "NotAllowedError",
    "Order",
    "OwnerError",
    "Position",
    "PreSharedKey",
    "PublishError",
    "ReaderMessage",
    "ReaderSubscription",
    "Subscription",
    "Tls",
    "Token",
    "WindowFull",
    "WsqueueError",
    "__version__",
    "connect",
]

# The application decides how the log of a library is shown (docs.python.org/3/howto/logging.html).
logging.getLogger(__name__).addHandler(logging.NullHandler())
