"""Files that TLS can and cannot use, and streams without a network."""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from wsqueue.config.addresses import Address
from wsqueue.config.model import ClientConfig, ConsumerConfig, Tls
from wsqueue.errors import ConfigError
from wsqueue.net.certificates import TlsContexts
from wsqueue.net.tls import SLICE_BYTES, TlsStream, explain

from ...support.certificates import Authority
from ...support.examples import examples

BEGIN, END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
ADDRESS = Address("localhost", 1, tls=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Tls:
    return authority.issue("node")


def contexts(tls: Tls) -> TlsContexts:
    return TlsContexts(ConsumerConfig(listen=["wss://127.0.0.1:1"], tls=tls))


cached_contexts = functools.cache(contexts)


def encoded(key: rsa.RSAPrivateKey, passphrase: bytes = b"") -> bytes:
    own = serialization
    secrecy = own.BestAvailableEncryption(passphrase) if passphrase else own.NoEncryption()
    return key.private_bytes(own.Encoding.PEM, own.PrivateFormat.PKCS8, secrecy)


class TestFiles:
    @pytest.mark.parametrize("name", ["certificate", "key", "ca"])
    @pytest.mark.parametrize("what", ["missing", "a directory", "huge"])
    def test_that_cannot_be_read(self, node: Tls, tmp_path: Path, name: str, what: str) -> None:
        file = tmp_path / "file"
        if what == "a directory":
            file.mkdir()
        elif what == "huge":
            with file.open("wb") as stream:
                stream.truncate(2**21)
        with pytest.raises(ConfigError) as caught:
            contexts(msgspec.structs.replace(node, **{name: str(file)}))
        assert caught.value.file == str(file)
        assert "the file has more than" in str(caught.value) or "cannot read it: " in str(caught.value)

    @pytest.mark.parametrize("name", ["certificate", "ca"])
    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            *((text, "holds no certificate; expected PEM") for text in ("", "\x00\xff")),
            *((f"{BEGIN}\n{text}\n{END}\n", "in it is malformed") for text in ("AAAA", "A", "ñ")),
        ],
    )
    def test_without_one(self, node: Tls, tmp_path: Path, name: str, content: str, problem: str) -> None:
        file = tmp_path / "file.pem"
        file.write_text(content)
        with pytest.raises(ConfigError, match=problem) as caught:
            contexts(msgspec.structs.replace(node, **{name: str(file)}))
        assert caught.value.file == str(file)

    def test_keys_that_cannot_be_used(self, node: Tls, tmp_path: Path) -> None:
        key = rsa.generate_private_key(65537, 2048)
        file = tmp_path / "key"
        for content, problem in (
            (encoded(key), f"it is not the key of {node.certificate}"),
            (encoded(key, b"secret"), "the key needs a passphrase; expected one that does not"),
            (b"", "it holds no private key; expected PEM"),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "it holds no private key"),
        ):
            file.write_bytes(content)
            file.chmod(0o600)
            with pytest.raises(ConfigError, match=problem) as caught:
                contexts(msgspec.structs.replace(node, key=str(file)))
            assert caught.value.file == str(file)

    @pytest.mark.parametrize("mode", [0o604, 0o644, 0o777])
    def test_a_key_that_everybody_may_read(self, authority: Authority, mode: int) -> None:
        own = authority.issue("open")
        Path(str(own.key)).chmod(mode)
        with pytest.raises(ConfigError, match="all users may read the key; expected `chmod o= "):
            contexts(own)

    @pytest.mark.parametrize(
        ("replaced", "problem"),
        [(True, "it changed while it was read"), (False, r"cannot read it or .*own\.key: No such file")],
    )
    def test_that_change_or_vanish_while_they_are_read(
        self, authority: Authority, monkeypatch: pytest.MonkeyPatch, replaced: bool, problem: str
    ) -> None:
        own, load = authority.issue("own"), ssl.SSLContext.load_cert_chain

        def load_while_they_change(context: ssl.SSLContext, *arguments: Any) -> None:
            if not replaced:
                os.unlink(str(own.key))  # noqa: PTH108 - one call
            load(context, *arguments)
            authority.issue("own")

        monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_while_they_change)
        with pytest.raises(ConfigError, match=problem):
            contexts(own)

    def test_in_one(self, node: Tls, tmp_path: Path) -> None:
        """A certificate and its key may be in the same file, with other text."""
        file = tmp_path / "both.pem"
        parts = [Path(str(part)).read_text() for part in (node.key, node.certificate)]
        file.write_text("\n".join(["Ñandú", *parts]))
        file.chmod(0o600)
        made = contexts(Tls(certificate=str(file), key=str(file)))
        again = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own, for another process
        for each in (made, again):
            assert each.accept().channel_binding == contexts(node).accept().channel_binding

    def test_that_nobody_needs_are_checked_too(self, authority: Authority, tmp_path: Path) -> None:
        plain = ClientConfig(producers=["a:1/produce"], consumers=["b:1/subscribe"])
        assert not TlsContexts(plain).accepts
        for tls in (Tls(ca=str(tmp_path / "none")), Tls(certificate=str(tmp_path / "none"), key="none")):
            with pytest.raises(ConfigError, match="cannot read it"):
                TlsContexts(msgspec.structs.replace(plain, tls=tls))

    @pytest.mark.parametrize(
        ("days", "warning"), [(-1, "has expired on"), (0.5, "expires on"), (29, "expires on"), (31, "")]
    )
    def test_that_expire(self, tmp_path: Path, days: float, warning: str) -> None:
        own = Authority(tmp_path).issue("node", days=days)
        warnings = contexts(own).warnings(datetime.now(UTC))
        end = f"{datetime.now(UTC) + timedelta(days=days):%Y-%m-%d}"
        assert warnings == [f"{own.certificate}: a certificate in it {warning} {end}"] * bool(warning)

    @pytest.mark.parametrize("days", [-300, 10, 366 * 40])
    def test_authorities_that_expire(self, tmp_path: Path, days: int) -> None:
        """From 2050 on, a date has another form."""
        authority = Authority(tmp_path, days=days)
        warnings = contexts(authority.trusting()).warnings(datetime.now(UTC))
        assert [warning.partition(": ")[0] for warning in warnings] == [str(authority.file)] * (days < 30)


class TestStreams:
    def test_what_is_sent_arrives(self, node: Tls) -> None:
        acceptor, initiator = pair(node)
        assert (acceptor.established, initiator.established) == (True, True)
        for one, other in ((acceptor, initiator), (initiator, acceptor)):
            for size in (1, SLICE_BYTES, SLICE_BYTES + 1, 1_000_000):
                data = os.urandom(size)
                assert other.receive(one.send(data)) == data
            assert one.send(b"") == b""

    def test_both_ends_know_the_certificate(self, node: Tls) -> None:
        acceptor, initiator = pair(node)
        der = ssl.PEM_cert_to_DER_cert(Path(str(node.certificate)).read_text())
        assert acceptor.channel_binding == initiator.channel_binding == hashlib.sha256(der).digest()

    def test_what_is_sent_before_the_handshake_waits_for_it(self, node: Tls) -> None:
        made = contexts(node)
        acceptor, initiator = made.accept(), made.connect(ADDRESS)
        assert initiator is not None
        assert initiator.send(b"early") == b""
        assert initiator.channel_binding == b""
        assert shake_hands(acceptor, initiator) == b"early"

    @examples(20, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.integers(1, 2000), max_size=20), st.lists(st.integers(0, 40_000), max_size=5))
    def test_cut_anywhere(self, node: Tls, cuts: list[int], sizes: list[int]) -> None:
        acceptor, initiator = pair(node)
        data = [os.urandom(size) for size in sizes]
        stream = b"".join(map(initiator.send, data)) + initiator.end()
        received = b""
        for cut in cuts:
            received += acceptor.receive(stream[:cut])
            stream = stream[cut:]
        assert not acceptor.ended or not stream
        assert received + acceptor.receive(stream) == b"".join(data)
        assert acceptor.ended
        assert not acceptor.problem

    def test_the_end_of_one_direction_is_not_that_of_the_other(self, node: Tls) -> None:
        acceptor, initiator = pair(node)
        end = acceptor.end()
        assert acceptor.receive(initiator.send(b"still there")) == b"still there"
        assert acceptor.send(b"too late") == acceptor.end() == b""
        assert initiator.receive(end) == b""
        assert (acceptor.ended, initiator.ended) == (False, True)
        acceptor.receive(initiator.end())
        assert (acceptor.ended, initiator.ended) == (True, True)
        assert acceptor.receive(b"whatever") == b""

    def test_a_record_that_was_changed(self, node: Tls) -> None:
        acceptor, initiator = pair(node)
        whole, changed = initiator.send(b"whole"), bytearray(initiator.send(b"changed"))
        changed[-1] ^= 1
        assert acceptor.receive(whole + changed) == b"whole"
        # Before and from OpenSSL 3.2 on.
        reasons = ("decryption failed or bad record mac", "record layer failure")
        assert acceptor.problem in {f"TLS failed: {reason}" for reason in reasons}
        assert acceptor.send(b"more") == b""
        initiator.receive(acceptor.data_to_send())
        assert initiator.problem == "it refuses this end: bad record mac"

    def test_http(self, node: Tls) -> None:
        acceptor = contexts(node).accept()
        assert acceptor.receive(b"GET / HTTP/1.1\r\n\r\n") == b""
        assert acceptor.problem == "it speaks HTTP without TLS: expected wss://"
        assert acceptor.data_to_send().startswith(b"HTTP/1.1 400 TLS is spoken here: expected wss://\r\n")
        assert acceptor.data_to_send() == b""

    @examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.binary(min_size=6, max_size=40_000), st.booleans())
    def test_garbage(self, node: Tls, garbage: bytes, like_tls: bool) -> None:
        acceptor = cached_contexts(node).accept()
        header = b"\x16\x03\x01" + len(garbage[:16_000]).to_bytes(2)
        assert acceptor.receive(header + garbage if like_tls else garbage) == b""
        assert not acceptor.established


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        ("WRONG_VERSION_NUMBER", "it speaks no TLS: expected an address without wss://, or one that does"),
        ("TLSV1_ALERT_UNKNOWN_CA", "it refuses this end: unknown ca"),
        (
            "TLSV13_ALERT_CERTIFICATE_REQUIRED",
            "it wants a certificate: expected [tls] certificate and key here",
        ),
        ("NO_SHARED_CIPHER", "TLS failed: no shared cipher"),
    ],
)
def test_reasons(reason: str, sentence: str) -> None:
    error = ssl.SSLError()
    error.reason = reason
    assert explain(error) == sentence


def pair(tls: Tls) -> tuple[TlsStream, TlsStream]:
    made = cached_contexts(tls)
    acceptor, initiator = made.accept(), made.connect(ADDRESS)
    assert initiator is not None
    shake_hands(acceptor, initiator)
    return acceptor, initiator


def shake_hands(acceptor: TlsStream, initiator: TlsStream) -> bytes:
    """Pass bytes on until both ends are silent; return the plaintext that the acceptor received."""
    received = b""
    while data := initiator.data_to_send():
        received += acceptor.receive(data)
        initiator.receive(acceptor.data_to_send())
    assert not acceptor.problem
    assert not initiator.problem
    return received
