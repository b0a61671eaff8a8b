"""The most memory that a node takes, as docs/configuration.md has it in section "Memory bounds"."""

from __future__ import annotations

from ..config.model import READ_MARGIN_BYTES, ConsumerConfig, Limits, NodeConfig, ProducerConfig
from ..log.archive import MAX_GROUP_BYTES
from ..log.ledger import MAX_EMPTY_TOPICS, MAX_TOPICS
from ..log.schema import CACHE_KIB
from ..log.sqlite import CACHE_BYTES, PENDING_BYTES
from ..protocol.routing import CACHED_TOPICS, MAX_CACHED_CHARACTERS
from ..protocol.session import MAX_HELLO_BYTES
from .limits import LINK_CONNECTIONS
from .link_queue import MAX_REFUSED

KIB, MIB = 1024, 1024 * 1024

IDLE_BYTES = 40 * MIB
"""Memory of a process that is idle: Python and its modules."""

WORK_BYTES = 8 * MIB
"""Memory for the work itself: one read in all its forms, and the free memory that malloc keeps."""

RESTING_BYTES = 26 * KIB
"""Memory of a connection at rest, 20 KiB of it for TLS."""

STRANGER_BYTES = MAX_HELLO_BYTES * 9 // 8 + 32 * KIB
"""Memory of a connection whose peer has not proved itself: what it may send, and the connection."""

REFUSED_BYTES = 300
"""Memory of a refused batch in a producer."""

TOPIC_BYTES = 300
"""Memory of a topic in the cache of the routes or in a log on disk, besides its characters."""

CHARACTERS_BYTES = 4 * MAX_CACHED_CHARACTERS
"""Memory of the characters of a topic of up to 128, which may take 4 bytes each in Python."""


def memory_bound(config: NodeConfig) -> int:
    """Return the most bytes of memory that a node takes, whatever its peers do.

    The kernel's socket buffers and its cache of files are not in it.
    """
    limits = config.limits
    connections = limits.max_connections + LINK_CONNECTIONS
    strangers = limits.max_strangers * (STRANGER_BYTES + RESTING_BYTES)
    node = IDLE_BYTES + WORK_BYTES + limits.max_total_buffered_bytes + connections * RESTING_BYTES + strangers
    if isinstance(config, ConsumerConfig):
        return node + limits.max_index_bytes + _log_bytes(config)
    assert isinstance(config, ProducerConfig)
    routes = CACHED_TOPICS * (CHARACTERS_BYTES + TOPIC_BYTES)
    return node + routes + len(config.consumers) * _link_bytes(limits)


def _log_bytes(config: ConsumerConfig) -> int:
    if config.retention.mode == "memory":
        return config.retention.max_bytes
    topics = (MAX_EMPTY_TOPICS + MAX_TOPICS) * (CHARACTERS_BYTES + 2 * TOPIC_BYTES)
    return CACHE_BYTES + PENDING_BYTES + 2 * CACHE_KIB * KIB + 2 * MAX_GROUP_BYTES + topics


def _link_bytes(limits: Limits) -> int:
    """Return the memory of a link whose consumer is down while publishers come and go."""
    one_read = limits.max_message_bytes + READ_MARGIN_BYTES
    return 2 * limits.max_held_bytes + 2 * one_read + MAX_REFUSED * REFUSED_BYTES
