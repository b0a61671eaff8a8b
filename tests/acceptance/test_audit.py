"""The check for known vulnerabilities, against a database on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow

VULNERABLE = "websockets"


@contextmanager
def database(answers: dict[str, Any], status: int = 200) -> Iterator[str]:
    """Serve OSV's query, and yield its URL: each package has the answer of its name, or knows of nothing."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # An answer in one piece, so that none waits for an acknowledgement.
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(answers.get(query["package"]["name"], {})).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


def audit(url: str, *options: str) -> tuple[int, str]:
    command = [sys.executable, "-I", str(ROOT / "scripts" / "audit"), "--osv-url", url, *options]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert told.stderr == ""
    return told.returncode, told.stdout


def test_a_known_vulnerability_fails() -> None:
    entry = {
        "id": "PYSEC-2030-1",
        "summary": "Frames burn.",
        "affected": [
            {
                "package": {"name": VULNERABLE, "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
            }
        ],
    }
    with database({VULNERABLE: {"vulns": [entry]}}) as url:
        status, shown = audit(url)
        assert status == 1
        assert re.search(rf"(?m)^{VULNERABLE} \S+ has PYSEC-2030-1, fixed in 99.0: Frames burn.$", shown)
        assert re.search(r"\n\d+ packages, 1 known vulnerabilities\n$", shown)
        status, shown = audit(url, "--ignore-vuln", "PYSEC-2030-1")
        assert status == 0
    assert (found := re.fullmatch(r"(\d+) packages, 0 known vulnerabilities\n", shown))
    pinned = (ROOT / "requirements" / "dev.txt").read_text()
    assert int(found[1]) > 0.9 * len(set(re.findall(r"(?m)^[\w.-]+(?===)", pinned)))


def test_a_database_that_cannot_be_reached_is_said_in_one_line() -> None:
    said = "No vulnerability was looked for, because the database of vulnerabilities cannot be reached.\n"
    with database({}) as url:
        pass
    assert audit(url) == (3, said)
    # As where something else answers in its place.
    with database({}, status=403) as url:
        assert audit(url) == (3, said)
