"""docs/protocol.schema.json describes the packets that the decoders take."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

from docs.generators import schema
from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import PeerError

from ...support.session_pair import few, many
from ...support.strategies import CLASSIC_PACKETS, V2_PACKETS, secrets

# JSON Schema takes 1.0 for an integer, our decoders don't.
Validator = extend(  # type: ignore[no-untyped-call]
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _checker, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)

DOCUMENT = schema.schema()
ANY_PACKET = Draft202012Validator(DOCUMENT)


@functools.cache
def validator(definition: str) -> Any:
    return Validator({"$ref": f"#/$defs/{definition}", "$defs": DOCUMENT["$defs"]})


def takes(definition: str, value: object) -> bool:
    """Return True if a definition of the schema takes a value."""
    return bool(validator(definition).is_valid(value))


def decodes(decode: Callable[[bytes], object], value: object) -> bool:
    try:
        decode(json.dumps(value).encode())
    except PeerError:
        return False
    return True


def test_the_file_is_up_to_date() -> None:
    assert schema.FILE.read_text() == schema.text(), "run: python -m docs.generators.schema"


def test_it_is_written_as_it_says(tmp_path: Any) -> None:
    code = "from pathlib import Path; from docs.generators import schema"
    code += f"; schema.FILE = Path({str(tmp_path / 'file')!r})"
    subprocess.run([sys.executable, "-c", f"{code}; schema.main()"], check=True)
    assert (tmp_path / "file").read_text() == schema.text()


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(json.loads(schema.FILE.read_text()))


def test_it_has_every_packet_and_no_other() -> None:
    tags = {
        value
        for definition in DOCUMENT["$defs"].values()
        for value in definition.get("properties", {}).get("t", {}).get("enum", [])
    }
    structs = (*schema.CLASSIC, *v2.PACKETS)
    assert tags == {struct.__struct_config__.tag for struct in structs}
    assert len(DOCUMENT["$defs"]) == len(structs) + 2


@few
@given(V2_PACKETS, CLASSIC_PACKETS)
def test_every_encoded_packet_is_described(packet: v2.Packet, other: classic.Packet) -> None:
    for value, name in ((v2.encode(packet), "v2"), (classic.encode(other), "classic")):
        described = [definition for definition in ("v2", "classic") if takes(definition, json.loads(value))]
        assert described == [name]
        assert ANY_PACKET.is_valid(json.loads(value))


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
integer = (
    st.integers(-2, 3) | st.integers(2**31 - 3, 2**31) | st.integers(2**53 - 2, 2**64) | st.just(-(2**70))
)
number = integer | st.floats(allow_nan=False, allow_infinity=False) | st.just(3600.5)
ranges = st.lists(st.lists(integer, min_size=1, max_size=3), max_size=2)
simple: st.SearchStrategy[object] = (
    st.none() | st.booleans() | number | text | st.lists(text, max_size=2) | st.just({})
)

FIELDS: dict[str, st.SearchStrategy[object]] = {
    **dict.fromkeys(["o", "number", "after", "count", "offset", "end"], integer),
    **dict.fromkeys(["a", "d", "s", "topic"], text),
    **dict.fromkeys(["time", "retry_seconds"], number),
    **dict.fromkeys(["report", "x"], simple),
    **dict.fromkeys(["publisher", "log"], text | st.integers(63, 65).map(lambda size: "ñ" * size)),
    "nonce": secrets | secrets.map(lambda one: one + "\n") | secrets.map(lambda one: one[1:]),
    "path": text | st.integers(8191, 8193).map(lambda size: "/" * size),
    "binding": secrets,
    "proof": secrets | secrets.map(lambda one: one.replace("A", "-")),
    "secret": secrets,
    "data": st.lists(text, max_size=2),
    "numbers": ranges,
    "code": st.sampled_from(["full", "invalid", "too_long", "topic_too_long", "after_refused", "other"]),
    "reason": text | st.integers(199, 201).map(lambda size: "\N{GRINNING FACE}" * size),
    "start": st.sampled_from(["latest", "earliest", "offset", "time", "Latest"]),
    "missed": integer | st.none(),
}


@st.composite
def nearly_packets(draw: st.DrawFn, structs: tuple[type[msgspec.Struct], ...]) -> object:
    """Return an object as some packet has it, in which a few things may be wrong."""
    struct = draw(st.sampled_from(structs))
    value: dict[str, object] = {"t": struct.__struct_config__.tag}
    for field in msgspec.structs.fields(struct):
        if field.required or draw(st.booleans()):
            value[field.encode_name] = draw(FIELDS[field.encode_name])
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        name = draw(
            st.sampled_from(["t", *FIELDS]) | st.sampled_from(sorted(value)) if value else st.just("t")
        )
        if draw(st.booleans()):
            value.pop(name, None)
        else:
            value[name] = draw(simple | FIELDS.get(name, text))
    return value


def has_bad_data(value: object) -> bool:
    """Return True if a node takes a packet and refuses the batch in it, which is not its peer's fault."""
    if not isinstance(value, dict) or value.get("t") not in ("publish", "forward"):
        return False
    if "data" not in value:
        return False
    # Whatever is behind the data passes for a part of it.
    behind = list(value)[-1] != "data" and not takes("v2", value)
    return behind or not takes("v2.Deliver/properties/data", value["data"])


@many
@given(nearly_packets(v2.PACKETS) | simple)
def test_the_schema_and_the_decoder_of_v2_agree(value: object) -> None:
    if has_bad_data(value):
        assert not takes("v2", value)
    else:
        assert takes("v2", value) == decodes(v2.decode, value)


@many
@given(nearly_packets(schema.CLASSIC) | simple)
def test_the_schema_and_the_decoder_of_classic_agree(value: object) -> None:
    assert takes("classic", value) == decodes(classic.decode, value)


@pytest.mark.parametrize(
    ("decode", "payload"),
    [
        (classic.decode, b'{"t":"m","d":"\\ud800","s":""}'),
        (v2.decode, b'{"t":"unsubscribe","topic":"\\ud800"}'),
        (v2.decode, b'{"t":"draining","retry_seconds":NaN}'),
    ],
)
def test_what_json_cannot_say_in_utf8_is_beyond_the_schema(
    decode: Callable[[bytes], object], payload: bytes
) -> None:
    json.loads(payload)
    with pytest.raises(PeerError):
        decode(payload)
