"""The epochs of a log: stretches of its history, by whose ids a log knows which positions are its own.

A directory that is put back from a copy, or a virtual machine that is set back, goes on from an earlier end,
and gives offsets again that subscribers have read with other messages. So each start begins an epoch, with
an id that nobody has used before:

    log as it was copied     ──1──┬──2──┐
    put back and started              └──4──▶    positions of 3 are unknown, those of 2 known up to its end
    log that went on         ──1──┴──2──────┴──3──▶

A position names the epoch in which it was read, and so stands for all messages before it, of this epoch and
of those before. Each record keeps the number of the epoch in which it came. An epoch ends in a topic where
the first record of a later one begins; a position behind that was read in a history that this log lacks.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from .records import Epoch

MAX_EPOCHS = 10_000
"""Epochs that are remembered, 2 MiB: a year of starts every hour. Positions of older ones are unknown."""


class Epochs:
    """Know the epochs of a log; the newest is the one that records come in.

    Args:
        known: The epochs that were kept, oldest first.

    Attributes:
        current: The newest epoch.
        restored: Number of the newest epoch before which messages may be missing, 0 if none are.
    """

    def __init__(self, known: Iterable[Epoch] = ()) -> None:
        self._epochs: dict[str, Epoch] = {}
        self.current = Epoch("", 0)
        self.restored = 0
        for epoch in known:
            self._add(epoch)

    def begin(self, *, restored: bool = False) -> Epoch:
        """Begin an epoch, and return it.

        Args:
            restored: Whether messages may be missing before it.
        """
        epoch = Epoch(secrets.token_hex(8), self.current.number + 1, restored)
        self._add(epoch)
        return epoch

    def number(self, id_: str) -> int | None:
        """Return the number of an epoch, None if this log does not know it."""
        epoch = self._epochs.get(id_)
        return None if epoch is None else epoch.number

    def known(self) -> list[Epoch]:
        """Return all epochs that are remembered, oldest first."""
        return list(self._epochs.values())

    def _add(self, epoch: Epoch) -> None:
        self._epochs[epoch.id] = self.current = epoch
        if epoch.restored:
            self.restored = epoch.number
        while len(self._epochs) > MAX_EPOCHS:
            del self._epochs[next(iter(self._epochs))]
