"""A worker process: `python -m wsqueue.tools.bench publishers`, or `subscribers`."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import resource
import sys
import threading
from pathlib import Path

from ...errors import AuthenticationError, ConnectError, WsqueueError
from .counters import Counters
from .publishers import Publishers
from .subscribers import Subscribers

KINDS: dict[str, type[Publishers] | type[Subscribers]] = {
    "publishers": Publishers,
    "subscribers": Subscribers,
}


def main() -> None:
    """Read a job from standard input, do it, and write its outcome to standard output."""
    try:
        wire, load, descriptor = pickle.load(sys.stdin.buffer)  # noqa: S301 - from our own parent
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
        _prepare()
        outcome: object = KINDS[sys.argv[1]](wire, load, Counters(descriptor)).run()
    except WsqueueError as error:
        outcome = picklable(error)
    except OSError as error:
        outcome = WsqueueError(str(error.strerror or error))
    except Exception as error:  # noqa: BLE001 - no stack trace reaches a user
        outcome = WsqueueError(f"internal error of the load generator: {type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        sys.stdout.buffer.write(pickle.dumps(outcome))
        sys.stdout.buffer.flush()


def _prepare() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.suppress(OSError):
        # By default, the system extends a sleep of 50 µs to 100 µs.
        Path("/proc/self/timerslack_ns").write_text("1")
    # Nothing here makes reference cycles, and looking for them would take 5 % of the time.
    gc.disable()


def _end_with_parent() -> None:
    # Not sys.stdin: a thread must not hold its lock while the interpreter ends.
    while os.read(0, 1):
        pass
    os._exit(1)


def picklable(error: WsqueueError) -> WsqueueError:
    """Return the error as an instance of a class that takes one sentence, so that it can be unpickled."""
    kinds = (AuthenticationError, ConnectError, WsqueueError)
    return next(kind for kind in kinds if isinstance(error, kind))(str(error))


if __name__ == "__main__":
    main()
