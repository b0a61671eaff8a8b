"""A worker as the run sees it: a process that gets a job and comes back with what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from typing import Any

from ...errors import WsqueueError
from .wire import Wire
from .workload import Load

SPARE_FILES = 64
"""Open files that a worker needs besides its connections, with a margin."""


class Worker:
    """Hold a worker's process; it ends with its standard input.

    Attributes:
        name: For errors.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._outputs = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, kind: str, wire: Wire, load: Load, counters: int) -> Worker:
        """Start the process.

        Args:
            kind: "publishers" or "subscribers".
            wire: The system.
            load: What to publish.
            counters: The descriptor of the run's counters.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsqueue.tools.bench", kind),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # A wire may be from anywhere.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=(counters,),
            # Ctrl-C is for the run, which then ends its workers.
            start_new_session=True,
        )
        assert process.stdin is not None
        # A process that has ended by now takes nothing; its outcome will say so.
        if not process.stdin.is_closing():
            # The job has the key of the cluster in it, which is for no command line and no environment.
            process.stdin.write(pickle.dumps((wire, load, counters)))
        return cls(f"the {kind}", process)

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Tell whether the process has ended."""
        return self._outputs.done()

    async def outcome(self) -> Any:  # noqa: ANN401 - the result of the job
        """Wait for the end, and return the result.

        Raises:
            WsqueueError: It failed.
        """
        out, err = await asyncio.shield(self._outputs)
        try:
            outcome = pickle.loads(out)  # noqa: S301 - from our own process
        except (EOFError, pickle.UnpicklingError):
            why = err.decode(errors="replace").strip().rpartition("\n")[2] or "it was killed"
            raise WsqueueError(f"the process of {self.name} ended: {why}") from None
        if isinstance(outcome, WsqueueError):
            raise outcome
        return outcome

    def kill(self) -> None:
        """End the process at once, unless it has ended."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def ended(self) -> None:
        """Wait for the end."""
        await asyncio.wait([self._outputs])

    async def _read(self) -> tuple[bytes, bytes]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        outputs = await asyncio.gather(self._process.stdout.read(), self._process.stderr.read())
        await self._process.wait()
        return outputs
