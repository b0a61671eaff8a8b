"""The records of a stream that a consumer has heard of, so that it finds those that it has not. No I/O.

Notices of other consumers can be lost. The numbers of a stream's records have no holes when they are given,
so a number below the stream's last one that nobody has told of is a record that was missed.

    0 ────── all heard of ──────▶ `upto`   ahead: 12 13 15        last
"""

from __future__ import annotations

MAX_AHEAD = 10_000
"""Numbers above a hole that are remembered; when there are more, the records in the hole were missed."""


class Seen:
    """Know which records of a stream were heard of.

    Args:
        upto: Sequence number up to which the owner knows all.
    """

    __slots__ = ("_ahead", "_asked", "_given_up", "upto")

    def __init__(self, upto: int = 0) -> None:
        self.upto = upto
        self._ahead: set[int] = set()
        self._asked = 0
        self._given_up = False

    def note(self, seq: int) -> None:
        """Note that a record was heard of."""
        if seq == self.upto + 1 and not self._ahead:
            self.upto = seq
        elif seq > self.upto and len(self._ahead) >= MAX_AHEAD:
            # To forget the newest numbers instead would make a hole of each of them.
            self.upto, self._ahead, self._given_up = seq, set(), True
        elif seq > self.upto:
            self._ahead.add(seq)
            while self.upto + 1 in self._ahead:
                self.upto += 1
                self._ahead.discard(self.upto)

    def missed(self, last: int) -> bool:
        """Return True if a record was missed that was there at the call before, or many came after it.

        Then all up to there count as heard of, because the caller looks for them.

        Args:
            last: Sequence number of the stream's last record now.
        """
        asked, self._asked = self._asked, last
        if last < asked:
            # Somebody has made the stream anew.
            self.upto, self._ahead = last, set()
            return True
        if self.upto >= asked:
            given_up, self._given_up = self._given_up, False
            return given_up
        self._given_up = False
        self.upto = asked
        self._ahead = {seq for seq in self._ahead if seq > asked}
        while self.upto + 1 in self._ahead:
            self.upto += 1
            self._ahead.discard(self.upto)
        return True
