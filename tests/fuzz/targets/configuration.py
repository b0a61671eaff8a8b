"""Configuration files: any bytes give a configuration, or an error of one line that names the file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support.config_files import CONSUMER, DEMO, PRODUCER
from tests.support.paths import ROOT
from wsqueue.config.check import config_warnings
from wsqueue.config.load import load_any_config, load_config
from wsqueue.config.model import ClientConfig, Config, ConsumerConfig, NodeConfig, ProducerConfig
from wsqueue.errors import ConfigError

WORDS = (
    *(b"role = ", b'"consumer"', b'"producer"', b'"demo"', b"listen = [", b"consumers = [", b"producers = ["),
    *(
        b"[limits]\n",
        b"[tls]\n",
        b"[retention]\n",
        b"[monitoring]\n",
        b"max_message_bytes = ",
        b"local = true\n",
    ),
    *(b"hello_order = ", b"mode = ", b"directory = ", b"pages = ", b"psk_file = ", b'"wss://', b'"unix:/'),
    *(b'"[::1]:1"', b"127.0.0.1:", b"/produce", b"/producer", b"/subscribe", b"inf", b"nan", b"1979-05-27"),
    *(b'"""', b"'''", rb"\u0000", b"0x", b"1e400", b"=[", b"{}", b"allow_classic = ", b"max_age_seconds = "),
)

FILE = Path(tempfile.mkdtemp(prefix="wsqueue-fuzz-")) / "node.toml"
KINDS: tuple[type[Config], ...] = (ConsumerConfig, ProducerConfig, ClientConfig)


def check(data: bytes) -> None:
    """Load it as a file of any role, and of each."""
    FILE.write_bytes(data)
    try:
        config = load_any_config(FILE)
    except ConfigError as error:
        check_error(error)
        for kind in KINDS:
            refuse(kind)
        return
    assert all(isinstance(sentence, str) and sentence for sentence in config_warnings(config))
    addresses = list(config.peers)
    if isinstance(config, NodeConfig):
        addresses += config.listeners + config.page_listeners + config.all_consumers + config.all_producers
    if config.local:
        assert all(address.loopback for address in addresses)
    for kind in KINDS:
        if isinstance(config, kind):
            assert load_config(FILE, kind) == config
        else:
            refuse(kind)


def refuse(kind: type[Config]) -> None:
    """Check that the file is refused for a role."""
    try:
        load_config(FILE, kind)
    except ConfigError as error:
        check_error(error)
    else:
        raise AssertionError(f"it is a file for {kind.__name__} too")


def check_error(error: ConfigError) -> None:
    """Check that an error can be read."""
    text = str(error)
    assert error.file == str(FILE)
    assert text.startswith(str(FILE))
    assert len(text.splitlines()) == 1, repr(text)
    text.encode()
    assert error.problem
    assert error.line is None or 1 <= error.line <= FILE.read_bytes().count(b"\n") + 1


def seeds() -> Iterator[bytes]:
    """Yield files of each role, and those of the documents."""
    for text in (CONSUMER, PRODUCER, DEMO):
        yield text.encode()
        yield (text + 'local = true\npsk_file = "psk"\n[limits]\nmax_message_bytes = 1000\n').encode()
    yield (CONSUMER + '[retention]\nmode = "sqlite"\ndirectory = "d"\nmax_age_seconds = 5.5\n').encode()
    yield (CONSUMER + '[[retention.topics]]\nmatch = "a/*"\nmax_messages_per_topic = 1\n').encode()
    yield (CONSUMER + '[tls]\ncertificate = "c"\nkey = "k"\nca = "a"\nclient_certificates = true\n').encode()
    yield (PRODUCER + '[monitoring]\nlisten = ["[::1]:1"]\npages = "all"\ntop_topics = 3\n').encode()
    text = (ROOT / "docs" / "configuration.md").read_text()
    for block in text.split("```toml\n")[1:]:
        yield block.partition("```")[0].encode()
