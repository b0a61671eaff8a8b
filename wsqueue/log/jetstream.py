"""The engine on NATS JetStream (https://docs.nats.io/reference/reference-protocols/nats_api_reference).

| of an engine | is in NATS |
|---|---|
| a stream | the stream `NAME-0` and so on, with the subjects `NAME.0.*` |
| the stream of the states | the stream `NAME-state` with the subjects `NAME.state.*.*`, one record of each |
| an append | a request at the subject with the header `Nats-Expected-Last-Subject-Sequence` |
| the last record | `$JS.API.STREAM.MSG.GET`, which only the leader of the stream answers |
| reading | `$JS.API.DIRECT.GET`, which any server with the stream answers, with many records at a time |
| a notice | a message at the subject `NAME.notice`, which no stream keeps and whose sender does not get it |
| the id of the shared log | metadata of the stream `NAME-0`, from the consumer that made it |

It needs the package nats-py. Its requests have deadlines here, because a request can be lost with its server.
A message that it sends late, after a reconnect, does no harm: an append names the record that it comes after.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import re
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ..config.files import read_secret
from ..config.model import JetStream, Retention
from ..errors import ConfigError, why
from ..journal import Complaint, log
from ..net.certificates import initiator_context
from .engine import READ_BYTES, STATES, Conflict, Counts, Full, Place, Stored, StreamState, Unanswered
from .shared_topic import MAX_RECORD_BYTES

try:
    import nats
    import nats.errors
    from nats.aio.client import Client
    from nats.aio.msg import Msg
except ImportError as error:
    raise ConfigError(
        f"the mode jetstream needs the package nats-py ({error}): expected"
        " `pip install 'wsqueue[jetstream]'`",
        key="retention.mode",
    ) from None

logger = logging.getLogger(__name__)

MIN_VERSION = (2, 15, 1)
"""The oldest version of nats-server that is used: older ones have lost messages, or let two appends at one
place succeed."""

REQUEST_SECONDS = 2.0
"""Time for the answer to a request: a busy disk takes a tenth of it."""

CONNECT_SECONDS = 2.0
"""Time for a connection to a server, before the next one is tried."""

RECONNECT_SECONDS = 0.2
"""Time between two attempts to connect."""

CLOSE_SECONDS = 1.0
"""Time for the end of a connection; a server that reads does it at once."""

REACHED_SECONDS = 15.0
"""Time since which a replica was heard of that counts as reached: it is heard of every second."""

PING_SECONDS = 2
"""Time between two pings to the server; two without an answer end the connection."""

RECORD_MARGIN_BYTES = 300 * 1024
"""Most bytes of a record besides its batches: a table of ids of 64 characters, and other fields."""

MAX_BATCH_RECORDS = 1000
"""Records that one read asks a server for."""

MAX_PASSWORD_BYTES = 4096
"""Maximum size of a password's file; a larger file is something else."""

CONFLICTS = frozenset((10071, 10164))
"""Error codes of an append whose last record is another one."""

NO_ROOM = frozenset((10002, 10023, 10028, 10047, 10077, 10122))
"""Error codes of an append that finds no room: limits of the account, the server or the stream, a full
disk."""

STORE_FAILED, STORE_LIMIT = 10077, "maximum"
"""The one of these that stands for all that goes wrong when the leader writes a record, and a word of those
texts that mean a limit. In all other cases, as a store that is closed because the server stops, the servers
have agreed on the record before, and the next leader has it."""

NOT_FOUND, STREAM_NOT_FOUND, NAME_IN_USE = 10037, 10059, 10058
"""Error codes of the API."""

PASSING = frozenset((10004, 10007, 10008, 10009, 10118, STREAM_NOT_FOUND))
"""Error codes at a start that pass: no server leads yet, or not all servers know of a new stream."""

EXPECTED_LAST = "Nats-Expected-Last-Subject-Sequence"


class _ApiError(Exception):
    def __init__(self, error: Mapping[str, Any]) -> None:
        self.code = error.get("err_code", 0)
        super().__init__(str(error.get("description", "unknown error")))


class JetStreamEngine:
    """Keep records in streams of NATS JetStream.

    Args:
        retention: The servers, and the age at which records go.
        max_message_bytes: Size of the largest batch.
        make: Whether to make streams that are missing; without that, they are read as empty ones.

    Attributes:
        id: Id of the shared log, known once `open` has returned.
        on_notice: Called with each notice of another consumer.
        on_connection: Called when the connection is lost, and when it is there again.
    """

    def __init__(self, retention: Retention, *, max_message_bytes: int, make: bool = True) -> None:
        assert retention.jetstream is not None
        self._config: JetStream = retention.jetstream
        self._age, self._max_message_bytes = retention.max_age_seconds, max_message_bytes
        self._name = self._config.name
        self._make, self._missing = make, set[int]()
        self.id = ""
        self.on_notice: Callable[[bytes], None] = lambda _notice: None
        self.on_connection: Callable[[], None] = lambda: None
        self._client = Client()
        self._failure = ""
        self._complaint = Complaint()
        self._tried = False
        self._notices: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Return True if there is a connection to a server."""
        return bool(self._client.is_connected)

    @property
    def server(self) -> str:
        """Return the name and version of the server, "" without a connection."""
        if not self.connected:
            return ""
        info = self._info()
        return f"{info.get('server_name', '')} {info.get('version', '')}"

    async def open(self) -> None:
        """Connect, and make the streams that are missing, unless it is told not to.

        Raises:
            ConfigError: The servers are too old, refuse this consumer, or are set up in another way than
                configured.
        """
        options = self._options()
        while True:
            try:
                await self._connect(options)
                self._check_server()
                for stream in (*range(self._config.streams), STATES):
                    await self._make_stream(stream)
                break
            except Unanswered as error:
                await self._client.close()
                self._complain("no NATS server answers", _reason(error))
                await asyncio.sleep(CONNECT_SECONDS)
            except _ApiError as error:
                await self._client.close()
                if error.code not in PASSING:
                    raise ConfigError(
                        f"the NATS servers can't keep the log: {error}", key="retention.jetstream"
                    ) from None
                self._complain("NATS servers not ready", _reason(error))
                await asyncio.sleep(CONNECT_SECONDS)
        await self._client.subscribe(f"{self._name}.notice", cb=self._noticed)
        # The ping of the first overtakes the subscription, which waits in a buffer.
        await self._client.flush()
        await self._client.flush()

    async def connect(self) -> None:
        """Connect for a look at the servers, which changes nothing there.

        Raises:
            Unanswered: None answers.
            ConfigError: As `open`.
        """
        # The caller hears of failures.
        await self._connect(self._options() | {"error_cb": self._note})
        self._check_server()

    async def look(self) -> list[StreamState | None]:
        """Return the states of all streams, None for each that is missing; that of `STATES` comes last.

        Raises:
            Unanswered: There is no leader.
            ConfigError: A stream is another one than configured.
        """
        found: list[StreamState | None] = []
        for stream in (*range(self._config.streams), STATES):
            try:
                info = await self._api(f"STREAM.INFO.{self._stream(stream)}", {})
            except _ApiError as error:
                if error.code != STREAM_NOT_FOUND:
                    raise Unanswered(f"the NATS servers refuse a request: {error}") from None
                found.append(None)
            else:
                self._check_stream(stream, info["config"])
                found.append(self._state(info))
        return found

    async def close(self) -> None:
        """Disconnect."""
        for task in self._notices:
            task.cancel()
        # It waits until a server has read all that was sent, also one that reads no more. A client that has
        # never tried to connect can't be closed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._tried:
                    await self._client.close()

    async def append(self, place: Place, data: bytes, after: int) -> int:
        """Append a record if the subject's last one has a sequence number; return the new one's.

        Raises:
            Conflict: It has another one.
            Full: There is no room.
            Unanswered: The outcome is not known.
        """
        try:
            answer = await self._request(self._subject(place), data, {EXPECTED_LAST: str(after)})
        except _ApiError as error:
            if error.code in CONFLICTS:
                raise Conflict(str(error)) from None
            if error.code in NO_ROOM and (error.code != STORE_FAILED or STORE_LIMIT in str(error)):
                raise Full(f"the NATS servers have no room: {error}") from None
            raise Unanswered(f"the NATS servers don't append: {error}") from None
        seq = answer.get("seq")
        if not isinstance(seq, int):
            raise Unanswered("something other than a stream answers at the subject of a topic")
        return seq

    async def last(self, place: Place) -> Stored | None:
        """Return the last record of a subject, as the leader of the stream has it, None without one.

        Raises:
            Unanswered: There is no leader.
        """
        if place.stream in self._missing:
            return None
        request = {"last_by_subj": self._subject(place)}
        try:
            answer = await self._api(f"STREAM.MSG.GET.{self._stream(place.stream)}", request)
        except _ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise Unanswered(f"the NATS servers don't read: {error}") from None
        message = answer["message"]
        return Stored(int(message["seq"]), base64.b64decode(message.get("data", "")), place.token)

    async def read(self, place: Place, seq: int, max_bytes: int) -> list[Stored]:
        """Return the next records of a subject from a sequence number on, as any server has them.

        Raises:
            Unanswered: No server answers.
        """
        return await self._read(place.stream, self._subject(place), seq, max_bytes)

    async def tokens(self, stream: int) -> list[str]:
        """Return the tokens of all subjects of a stream that have records, as its leader has them.

        Raises:
            Unanswered: There is no leader.
        """
        found: list[str] = []
        begin = len(self._subject(Place(stream, "")))
        while stream not in self._missing:
            # The server answers with a part of them, from an offset on.
            request = {"subjects_filter": self._subjects(stream), "offset": len(found)}
            info = await self._answered(f"STREAM.INFO.{self._stream(stream)}", request)
            subjects = info["state"].get("subjects") or {}
            found += [subject[begin:] for subject in subjects]
            if not subjects or len(found) >= info.get("total", 0):
                break
        return found

    async def newest(self, stream: int, tokens: Sequence[str]) -> list[Stored]:
        """Return the last records of some subjects of a stream, at least one if there is any.

        Raises:
            Unanswered: No server answers.
        """
        subjects = [self._subject(Place(stream, token)) for token in tokens]
        request = {"multi_last": subjects, "batch": len(subjects), "max_bytes": READ_BYTES * 8}
        return await self._read_direct(stream, request)

    async def scan(self, stream: int, seq: int, max_bytes: int) -> list[Stored]:
        """Return the next records of all subjects of a stream, as `read` does.

        Raises:
            Unanswered: No server answers.
        """
        return await self._read(stream, self._subjects(stream), seq, max_bytes)

    async def purge(self, place: Place, below: int) -> int:
        """Drop the records of a subject below a sequence number, and return how many there were.

        Raises:
            Unanswered: There is no leader.
        """
        request = {"filter": self._subject(place), "seq": below}
        answer = await self._answered(f"STREAM.PURGE.{self._stream(place.stream)}", request)
        return int(answer.get("purged", 0))

    async def count(self, stream: int, token: str) -> Counts:
        """Return the counts of a stream, as its leader has it.

        Raises:
            Unanswered: There is no leader.
        """
        request = {"subjects_filter": f"{self._name}.{_label(stream)}.{token}.*"}
        state = (await self._answered(f"STREAM.INFO.{self._stream(stream)}", request))["state"]
        below = sum((state.get("subjects") or {}).values())
        return Counts(state["messages"], state["bytes"], below)

    async def state(self, stream: int) -> StreamState:
        """Return the state of a stream, as its leader has it.

        Raises:
            Unanswered: There is no leader.
        """
        return self._state(await self._answered(f"STREAM.INFO.{self._stream(stream)}", {}))

    def _state(self, info: Mapping[str, Any]) -> StreamState:
        """Return the state of a stream from an answer about it."""
        state, cluster = info["state"], info.get("cluster") or {}
        replicas = [one for one in cluster.get("replicas") or [] if _reached(one)]
        return StreamState(
            first=state["first_seq"],
            last=state["last_seq"],
            bytes=state["bytes"],
            first_time=_unix_time(state["first_ts"]) if state["messages"] else 0.0,
            leader=cluster.get("leader") or self._info().get("server_name", ""),
            lag=max((replica.get("lag", 0) for replica in replicas), default=0),
            replicas=1 + len(replicas),
        )

    def notify(self, notice: bytes) -> None:
        """Tell the other consumers something, which may be lost."""
        if self.connected:
            task = asyncio.create_task(self._publish(notice))
            self._notices.add(task)
            task.add_done_callback(self._notices.discard)

    async def set_age(self, seconds: float) -> None:
        """Let records be dropped at another age.

        Raises:
            Unanswered: There is no leader.
        """
        self._age = seconds
        for stream in range(self._config.streams):
            info = await self._answered(f"STREAM.INFO.{self._stream(stream)}", {})
            changed = {**info["config"], "max_age": self._max_age(stream)}
            await self._answered(f"STREAM.UPDATE.{self._stream(stream)}", changed)

    # ---- connection

    async def _connect(self, options: dict[str, Any]) -> None:
        """Connect to the first server that answers, one chosen at random before all others.

        Raises:
            Unanswered: None answers.
            ConfigError: One refuses this consumer.
        """
        servers = list(self._config.servers)
        random.shuffle(servers)
        reasons: list[str] = []
        for _ in servers:
            self._client, self._tried = Client(), True
            try:
                # A client that may reconnect would try for ever, and tell nobody why.
                first = {"allow_reconnect": False, "max_reconnect_attempts": 1}
                await self._client.connect(servers, dont_randomize=True, **options | first)
            except (OSError, TimeoutError, nats.errors.Error) as error:
                await self._client.close()
                if "authorization" in str(error).lower():
                    raise ConfigError(
                        f"the NATS server {servers[0]} refuses this consumer: expected another user, password"
                        " or credentials",
                        key="retention.jetstream",
                    ) from None
                if isinstance(error, nats.errors.NoServersError):
                    # It has tried all of them.
                    reasons.append(f"{', '.join(servers)}: {self._failure}")
                    break
                reasons.append(f"{servers[0]}: {_reason(error)}")
                servers.append(servers.pop(0))
            else:
                self._client.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}
                return
        raise Unanswered("; ".join(reasons))

    def _options(self) -> dict[str, Any]:
        """Return the options of the connection.

        Raises:
            ConfigError: A file can't be used.
        """
        config = self._config
        options: dict[str, Any] = {
            "name": "wsqueue consumer",
            "no_echo": True,
            "connect_timeout": CONNECT_SECONDS,
            "reconnect_time_wait": RECONNECT_SECONDS,
            "max_reconnect_attempts": -1,
            "ping_interval": PING_SECONDS,
            "max_outstanding_pings": 2,
            "error_cb": self._failed,
            "disconnected_cb": self._changed,
            "reconnected_cb": self._reconnected,
        }
        if config.password_file is not None:
            password = read_secret(Path(config.password_file), MAX_PASSWORD_BYTES).rstrip("\r\n")
            options |= {"user": config.user, "password": password}
        if config.credentials_file is not None:
            read_secret(Path(config.credentials_file), MAX_PASSWORD_BYTES)
            options["user_credentials"] = config.credentials_file
        if any(address.tls for address in config.addresses) or config.ca or config.certificate:
            options["tls"] = context = initiator_context(config.tls)
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        return options

    def _info(self) -> dict[str, Any]:
        """Return the greeting of the server."""
        return dict(self._client._server_info)  # noqa: SLF001 - it has no public way to all of it

    def _check_server(self) -> None:
        """Refuse a server that can't be trusted with the log.

        Raises:
            ConfigError: It is too old, has no JetStream or no cluster, or takes too little in a message.
        """
        info = self._info()
        version = str(info.get("version", ""))
        numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
        if numbers < MIN_VERSION:
            expected = ".".join(map(str, MIN_VERSION))
            raise ConfigError(
                f"the NATS server has version {version}; expected at least {expected}, because older ones"
                " have lost messages",
                key="retention.jetstream.servers",
            )
        if not info.get("jetstream"):
            raise ConfigError(
                "the NATS server has no JetStream: expected `jetstream` in its configuration",
                key="retention.jetstream.servers",
            )
        replicas = self._config.replicas
        if replicas > 1 and not info.get("cluster"):
            raise ConfigError(
                f"the NATS server is no member of a cluster, and {replicas} replicas need {replicas} servers;"
                " expected 1, or servers that form a cluster",
                key="retention.jetstream.replicas",
            )
        needed = max(MAX_RECORD_BYTES, self._max_message_bytes) + RECORD_MARGIN_BYTES
        if (most := int(info.get("max_payload", 0))) < needed:
            raise ConfigError(
                f"the NATS server takes {most} bytes in a message; expected max_payload of at least {needed}"
                " in its configuration",
                key="retention.jetstream.servers",
            )

    async def _make_stream(self, stream: int) -> None:
        """Make a stream if it is missing, else check it.

        Raises:
            ConfigError: It is another one than configured.
            Unanswered: The servers don't answer.
        """
        name = self._stream(stream)
        try:
            info = await self._api(f"STREAM.INFO.{name}", {})
        except _ApiError as error:
            if error.code != STREAM_NOT_FOUND:
                raise
            if not self._make:
                self._missing.add(stream)
                return
            try:
                info = await self._api(f"STREAM.CREATE.{name}", self._wanted(stream))
            except _ApiError as created:
                if created.code != NAME_IN_USE:
                    raise
                # Another consumer has made it meanwhile.
                info = await self._api(f"STREAM.INFO.{name}", {})
        self._check_stream(stream, info["config"])
        age = self._max_age(stream)
        if self._make and info["config"].get("max_age") != age:
            # The configuration was changed while no consumer ran: each keeps logs alive by its own age.
            await self._api(f"STREAM.UPDATE.{name}", {**info["config"], "max_age": age})
        if stream == 0:
            self.id = (info["config"].get("metadata") or {})["wsqueue.id"]

    def _wanted(self, stream: int) -> dict[str, Any]:
        """Return the configuration of a stream."""
        return {
            "name": self._stream(stream),
            "subjects": [self._subjects(stream)],
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": 1 if stream == STATES else -1,
            "num_replicas": self._config.replicas,
            "max_age": self._max_age(stream),
            "allow_direct": True,
            "metadata": {"wsqueue.id": secrets.token_hex(8), "wsqueue.streams": str(self._config.streams)},
        }

    def _check_stream(self, stream: int, found: Mapping[str, Any]) -> None:
        """Refuse a stream that is another one than configured.

        Raises:
            ConfigError: It is.
        """
        name, wanted = self._stream(stream), self._wanted(stream)
        keys = ["subjects", "storage", "discard", "num_replicas", "allow_direct"]
        if stream == STATES:
            # A new value would not replace the old one, or be dropped with age.
            keys += ["max_msgs_per_subject"]
        for key in keys:
            if found.get(key) != wanted[key]:
                raise ConfigError(
                    f"the stream {name} has {key} = {found.get(key)!r}; expected {wanted[key]!r}",
                    key="retention.jetstream",
                )
        metadata = found.get("metadata") or {}
        if metadata.get("wsqueue.streams") != str(self._config.streams):
            raise ConfigError(
                f"the log was made with {metadata.get('wsqueue.streams', 'no known number of')} streams;"
                f" expected {self._config.streams}, because their number is fixed",
                key="retention.jetstream.streams",
            )

    async def _note(self, error: Exception) -> None:
        self._failure = _reason(error)

    async def _failed(self, error: Exception) -> None:
        await self._note(error)
        self._complain("connection to a NATS server failed", self._failure)

    async def _changed(self) -> None:
        self.on_connection()

    async def _reconnected(self) -> None:
        self._complaint.end()
        log(logger, logging.INFO, "connected to a NATS server", server=self.server)
        try:
            self._check_server()
        except ConfigError as error:
            # It is one of several, and the next reconnect may find a better one.
            log(logger, logging.ERROR, "NATS server unusable", reason=error)
        self.on_connection()

    def _complain(self, event: str, reason: str) -> None:
        self._complaint.log(logger, logging.WARNING, event, reason=reason)

    async def _noticed(self, message: Msg) -> None:
        self.on_notice(message.data)

    async def _publish(self, notice: bytes) -> None:
        try:
            await self._client.publish(f"{self._name}.notice", notice)
        except nats.errors.Error as error:
            log(logger, logging.DEBUG, "notice lost", reason=error)

    # ---- requests

    def _stream(self, stream: int) -> str:
        return f"{self._name}-{_label(stream)}"

    def _subject(self, place: Place) -> str:
        return f"{self._name}.{_label(place.stream)}.{place.token}"

    def _subjects(self, stream: int) -> str:
        """Return the subjects of a stream."""
        return self._subject(Place(stream, "*.*" if stream == STATES else "*"))

    def _max_age(self, stream: int) -> int:
        """Return the age in nanoseconds at which records of a stream go, 0 for never."""
        return 0 if stream == STATES else int(self._age * 1e9)

    async def _request(
        self, subject: str, data: bytes, headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Send a request, and return its answer.

        Raises:
            _ApiError: The answer is an error.
            Full: The request is too large.
            Unanswered: There is no answer.
        """
        if not self.connected:
            # The client would send the request later, when nobody waits for it.
            raise Unanswered("there is no connection to a NATS server")
        try:
            # A time-out of the client loses the cancellation of this task when the answer comes just then.
            async with asyncio.timeout(REQUEST_SECONDS):
                message = await self._client.request(
                    subject,
                    data,
                    timeout=None,  # type: ignore[arg-type]  # asyncio gets it, and takes it
                    headers=headers,
                )
            answer = json.loads(message.data)
        except nats.errors.MaxPayloadError:
            # Batches have become larger by a reload.
            raise Full("the NATS servers take no message that large: expected a larger max_payload") from None
        except nats.errors.NoRespondersError:
            raise Unanswered("no NATS server leads the stream of a topic") from None
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            raise Unanswered(f"the NATS servers don't answer: {_reason(error)}") from None
        if not isinstance(answer, dict):
            raise Unanswered("something other than a NATS server answers")
        if "error" in answer:
            raise _ApiError(answer["error"])
        return answer

    async def _api(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return await self._request(f"$JS.API.{name}", json.dumps(request).encode() if request else b"")

    async def _answered(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return await self._api(name, request)
        except _ApiError as error:
            raise Unanswered(f"the NATS servers refuse a request: {error}") from None

    async def _read(self, stream: int, subject: str, seq: int, max_bytes: int) -> list[Stored]:
        """Ask any server for records, and collect its answers.

        Raises:
            Unanswered: There is no answer, or not all of it comes.
        """
        batch = MAX_BATCH_RECORDS if max_bytes > 1 else 1
        request: dict[str, Any] = {"seq": seq, "next_by_subj": subject, "batch": batch}
        if max_bytes > 1:
            request["max_bytes"] = min(max_bytes, READ_BYTES * 8)
        return await self._read_direct(stream, request)

    async def _read_direct(self, stream: int, request: Mapping[str, Any]) -> list[Stored]:
        """Ask any server for records, and collect its answers.

        Raises:
            Unanswered: There is no answer, or not all of it comes.
        """
        if stream in self._missing:
            return []
        inbox = self._client.new_inbox()
        found: list[Stored] = []
        try:
            answers = await self._client.subscribe(inbox, pending_bytes_limit=0)
            try:
                await self._client.publish(
                    f"$JS.API.DIRECT.GET.{self._stream(stream)}", json.dumps(request).encode(), reply=inbox
                )
                while True:
                    async with asyncio.timeout(REQUEST_SECONDS):
                        message = await answers.next_msg(None)
                    headers = message.headers or {}
                    if status := headers.get("Status"):
                        break
                    token = headers["Nats-Subject"].removeprefix(self._subject(Place(stream, "")))
                    found.append(Stored(int(headers["Nats-Sequence"]), message.data, token))
            finally:
                await answers.unsubscribe()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise Unanswered(f"the NATS servers don't answer: {_reason(error)}") from None
        if status in ("204", "404"):
            return found
        raise Unanswered(f"a NATS server refuses to read: {headers.get('Description', status)}")


def _label(stream: int) -> str:
    """Return the part of a stream in its name and in its subjects."""
    return "state" if stream == STATES else str(stream)


def _reached(replica: Mapping[str, Any]) -> bool:
    """Return True if the leader of a stream reaches a replica; it takes minutes to call one offline."""
    heard = replica.get("current") or 0 < replica.get("active", 0) / 1e9 < REACHED_SECONDS
    return bool(heard) and not replica.get("offline")


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "time is up"
    return (why(error) if isinstance(error, OSError) else str(error)) or type(error).__name__


def _unix_time(text: str) -> float:
    """Return the Unix time of a time in RFC 3339, which may have nanoseconds."""
    return msgspec.convert(re.sub(r"(\.\d{6})\d+", r"\1", text), datetime).timestamp()
