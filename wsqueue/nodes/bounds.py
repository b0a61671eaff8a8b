"""The most memory that a node takes, as docs/configuration.md has it in section "Memory bounds"."""

from __future__ import annotations

from ..config.model import READ_MARGIN_BYTES, ConsumerConfig, Limits, NodeConfig, ProducerConfig
from ..log.archive import MAX_GROUP_BYTES
from ..log.ledger import MAX_EMPTY_TOPICS, MAX_TOPICS
from ..log.schema import CACHE_KIB
from ..log.sqlite import CACHE_BYTES, PENDING_BYTES
from ..log.states import MAX_STATES_BYTES
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
"""Memory of a connection whose peer has not proved itself: the bytes that it may send, and the connection."""

REFUSED_BYTES = 300
"""Memory of a refused batch in a producer."""

TOPIC_BYTES = 300
"""Memory of a topic in the cache of the routes or in a log on disk, besides its characters."""

CHARACTERS_BYTES = 4 * MAX_CACHED_CHARACTERS
"""Memory of the characters of a topic of up to 128, which may take 4 bytes each in Python."""

DISK_BYTES = CACHE_BYTES + PENDING_BYTES + 2 * CACHE_KIB * KIB + 2 * MAX_GROUP_BYTES
"""Memory of a log on disk: caches, the data that waits to be written, and SQLite's own."""

FILE_TOPICS_BYTES = (MAX_EMPTY_TOPICS + MAX_TOPICS) * (CHARACTERS_BYTES + 2 * TOPIC_BYTES)
"""Memory of the topics that a log on disk knows."""

ROUTES_BYTES = CACHED_TOPICS * (CHARACTERS_BYTES + TOPIC_BYTES)
"""Memory of the consumers of the topics that a producer saw last."""


def memory_bound(config: NodeConfig) -> int:
    """Return the most bytes of memory that a node takes, whatever its peers do.

    The kernel's socket buffers and its cache of files are not in it.
    """
    limits = config.limits
    connections = limits.max_connections + LINK_CONNECTIONS
    strangers = limits.max_strangers * (STRANGER_BYTES + RESTING_BYTES)
    node = IDLE_BYTES + WORK_BYTES + limits.max_total_buffered_bytes + connections * RESTING_BYTES + strangers
    if isinstance(config, ConsumerConfig):
        in_memory = config.retention.mode == "memory"
        log = config.retention.max_bytes if in_memory else DISK_BYTES + FILE_TOPICS_BYTES
        return node + limits.max_index_bytes + log + MAX_STATES_BYTES
    assert isinstance(config, ProducerConfig)
    return node + _links_bytes(config)


def friendly_bound(config: NodeConfig) -> int:
    """Return the most bytes of memory that a node takes whose peers mean no harm: logs and held messages."""
    bound = IDLE_BYTES + WORK_BYTES
    if isinstance(config, ConsumerConfig):
        in_memory = config.retention.mode == "memory"
        return bound + (config.retention.max_bytes if in_memory else DISK_BYTES) + FILE_TOPICS_BYTES
    assert isinstance(config, ProducerConfig)
    return bound + _links_bytes(config)


def _links_bytes(config: ProducerConfig) -> int:
    """Return the memory of a producer's routes, and of its links if all consumers are down."""
    return ROUTES_BYTES + len(config.consumers) * _link_bytes(config.limits)


def _link_bytes(limits: Limits) -> int:
    """Return the memory of a link whose consumer is down while publishers come and go."""
    one_read = limits.max_message_bytes + READ_MARGIN_BYTES
    return 2 * limits.max_held_bytes + 2 * one_read + MAX_REFUSED * REFUSED_BYTES
