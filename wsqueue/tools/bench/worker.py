"""A worker as the run sees it: a process that gets a job and returns its outcome."""

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
"""Open files that a worker needs in addition to its connections, with a margin."""


class Worker:
    """The process of a worker; it ends when its standard input is closed.

    Attributes:
        name: Name of the worker, for errors.
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
            wire: The wire of the system.
            load: The load.
            counters: Descriptor of the counters of the run.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsqueue.tools.bench", kind),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # The class of the wire may be anywhere on our path.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=(counters,),
            # Ctrl-C must only reach the run, which then ends its workers.
            start_new_session=True,
        )
        assert process.stdin is not None
        # If the process has already ended, its outcome has the reason.
        if not process.stdin.is_closing():
            # The job contains the key, which must not be in a command line or in the environment.
            process.stdin.write(pickle.dumps((wire, load, counters)))
        return cls(f"the {kind}", process)

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Return True if the process has ended."""
        return self._outputs.done()

    async def outcome(self) -> Any:  # noqa: ANN401 - the result of the job
        """Wait for the end of the process, and return the result of the job.

        Raises:
            WsqueueError: The job failed.
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
        """Wait for the end of the process."""
        await asyncio.wait([self._outputs])

    async def _read(self) -> tuple[bytes, bytes]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        outputs = await asyncio.gather(self._process.stdout.read(), self._process.stderr.read())
        await self._process.wait()
        return outputs
