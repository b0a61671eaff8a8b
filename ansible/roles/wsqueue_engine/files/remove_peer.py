"""Tell the NATS servers that one of them is gone for good, so that they give its place to another.

Settings and the password come as JSON on standard input, so that they are in no command line: `host`, `port`,
`ca` (null without TLS), `certificate` (null for none), `user`, `password` and `peer`, the name of the server
that is gone. Only the leader of the servers answers. Exit code 1 and a sentence if that fails.
"""

import json
import socket
import ssl
import sys
from typing import Any

SECONDS = 10.0
"""Time for each answer; an election takes less."""


class RemovalError(Exception):
    """The servers did not do it."""


def main() -> None:
    """Send one request as a client, and print the answer."""
    settings = json.load(sys.stdin)
    plain = socket.create_connection((settings["host"].strip("[]"), settings["port"]), SECONDS)
    # The server speaks first, and without TLS.
    if not _line(plain).startswith("INFO "):
        raise RemovalError("no NATS server answers")
    connection = plain
    if settings["ca"]:
        context = ssl.create_default_context(cafile=settings["ca"])
        if settings["certificate"]:
            context.load_cert_chain(settings["certificate"])
        connection = context.wrap_socket(plain, server_hostname=settings["host"].strip("[]"))
    hello = {key: settings[key if key != "pass" else "password"] for key in ("user", "pass")}
    hello |= {"verbose": False, "pedantic": False, "lang": "python", "version": "1"}
    request = json.dumps({"peer": settings["peer"]})
    connection.sendall(
        f"CONNECT {json.dumps(hello)}\r\nSUB answer 1\r\n"
        f"PUB $JS.API.SERVER.REMOVE answer {len(request)}\r\n{request}\r\n".encode()
    )
    answer = _answer(connection)
    if "error" in answer:
        raise RemovalError(answer["error"].get("description", "no reason given"))
    print("removed", settings["peer"])


def _answer(connection: socket.socket) -> dict[str, Any]:
    while True:
        line = _line(connection)
        if line.startswith("PING"):
            connection.sendall(b"PONG\r\n")
        elif line.startswith("-ERR"):
            raise RemovalError(line.removeprefix("-ERR").strip(" '"))
        elif line.startswith("MSG"):
            answer: dict[str, Any] = json.loads(_read(connection, int(line.split()[-1])))
            return answer


def _line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\r\n"):
        line += _read(connection, 1)
    return line.decode()


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise RemovalError("the server has closed the connection")
        data += more
    return data


try:
    main()
except (RemovalError, OSError, ValueError) as error:
    sys.exit(str(error) or type(error).__name__)
