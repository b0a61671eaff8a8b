"""The pre-shared key: answers, fingerprints, and places where it must not show."""

from __future__ import annotations

import copy
import hashlib
import hmac
import json
import pickle
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.paths import DATA
from wsqueue.protocol.classic import Hello
from wsqueue.protocol.close import PeerError
from wsqueue.protocol.hello import ClassicHandshake
from wsqueue.protocol.keys import Order, PreSharedKey, Role

from ...support.raw_v2_peer import derived
from ...support.session_pair import PSK, SECRET, answer_of, few

VECTORS: list[dict[str, Any]] = json.loads((DATA / "vectors.json").read_text())["hello"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["hex"])
@pytest.mark.parametrize("order", Order, ids=lambda order: order.value)
def test_vectors(vector: dict[str, Any], order: Order) -> None:
    psk, once, answer = PreSharedKey(vector["psk"]), vector["once"], vector[f"{order.value}_order"]
    assert f"{once:x}" == vector["hex"]
    assert psk.answer(once, order) == answer
    assert psk.verify(once, answer) == (order, 0)
    assert PreSharedKey("other", vector["psk"]).verify(once, answer) == (order, 1)
    assert psk.verify(once + 1, answer) is None
    assert PreSharedKey(vector["psk"] + "x").verify(once, answer) is None


@given(st.integers(1, 2**31 - 2), st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from(Order))
@few
def test_answers_as_computed_by_other_code(once: int, secret: str, order: Order) -> None:
    assert PreSharedKey(secret).answer(once, order) == answer_of(once, secret, order)


@pytest.mark.parametrize(
    "answer",
    [
        *("", "x", "ñ" * 44, "\N{GRINNING FACE}", "\0", "A" * 100_000, VECTORS[0]["document_order"][:-1]),
        *(VECTORS[0]["document_order"] + "\n", VECTORS[0]["document_order"].lower()),
    ],
)
def test_a_wrong_answer_of_any_form_is_only_wrong(answer: str) -> None:
    assert PreSharedKey(VECTORS[0]["psk"]).verify(VECTORS[0]["once"], answer) is None


class TestProofs:
    @few
    @given(st.binary(max_size=100), st.text(st.characters(exclude_categories=["Cs"])))
    def test_as_computed_by_other_code(self, claim: bytes, secret: str) -> None:
        proof = PreSharedKey(secret).prove(claim)
        assert proof == hmac.new(derived(secret, "wsqueue proof"), claim, hashlib.sha256).digest()
        assert PreSharedKey(secret).verify_proof(claim, proof) == 0
        assert PreSharedKey(secret).verify_proof(claim + b"\0", proof) is None
        assert PreSharedKey(secret + "x").verify_proof(claim, proof) is None

    def test_each_of_several_keys(self) -> None:
        psk = PreSharedKey("one", "two", "three")
        for index, secret in enumerate(("one", "two", "three")):
            proof = PreSharedKey(secret).prove(b"claim")
            assert psk.prove(b"claim", index) == proof
            assert psk.verify_proof(b"claim", proof) == index

    @pytest.mark.parametrize(
        "change", [lambda proof: proof[:-1], lambda proof: proof + b"\0", bytes.hex, len]
    )
    def test_a_wrong_proof_of_any_length_is_only_wrong(self, change: Any) -> None:
        changed = change(PSK.prove(b"claim"))
        wrong = changed if isinstance(changed, bytes) else str(changed).encode()
        assert PSK.verify_proof(b"claim", wrong) is None
        assert PSK.verify_proof(b"claim", b"") is None


class TestHidden:
    """The key shows nowhere."""

    @pytest.mark.parametrize("show", [repr, str, ascii, "{}".format, "{!r}".format, lambda psk: f"{[psk]}"])
    def test_in_text(self, show: Any) -> None:
        assert SECRET not in show(PSK)
        assert PSK.fingerprints()[0] not in show(PSK)

    def test_in_a_format(self) -> None:
        with pytest.raises(TypeError) as caught:
            format(PSK, "s")
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, pickle.dumps])
    def test_in_a_copy(self, copies: Any) -> None:
        with pytest.raises(TypeError, match="not pickled"):
            copies(PSK)

    def test_among_the_attributes(self) -> None:
        with pytest.raises(TypeError):
            vars(PSK)

    def test_in_a_traceback_with_the_values_of_locals(self) -> None:
        def show(psk: PreSharedKey, handshake: ClassicHandshake) -> None:
            raise RuntimeError(psk)

        try:
            show(PSK, ClassicHandshake(Role.ACCEPTOR, PSK))
        except RuntimeError as error:
            shown = traceback.TracebackException.from_exception(error, capture_locals=True).format()
            text = "".join(shown)
        assert "PreSharedKey" in text
        assert SECRET not in text

    def test_in_a_refusal(self) -> None:
        with pytest.raises(PeerError) as caught:
            ClassicHandshake(Role.ACCEPTOR, PSK).receive(Hello(answer="wrong"))
        assert SECRET not in f"{caught.value!r} {caught.value}"

    def test_in_the_exception_for_a_key_that_utf8_cannot_express(self) -> None:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what is tested
            PreSharedKey("confidential\ud800")
        error: BaseException | None = caught.value
        while error is not None:
            assert "confidential" not in f"{error!r} {error} {vars(error)} {getattr(error, 'object', '')}"
            error = error.__cause__ or error.__context__


class TestFingerprints:
    """A fingerprint tells keys apart, and is too short to find the key."""

    def test_vectors(self) -> None:
        """Computed with OpenSSL; they must not change, because nodes of other versions report them too."""
        assert PreSharedKey(SECRET).fingerprints() == ["2bde5a02"]
        assert PreSharedKey("ñandú").fingerprints() == ["bdd1508f"]

    def test_each_of_several_keys_has_one_in_their_order(self) -> None:
        assert PreSharedKey("b", SECRET, "a").fingerprints() == [
            *PreSharedKey("b").fingerprints(),
            *PreSharedKey(SECRET).fingerprints(),
            *PreSharedKey("a").fingerprints(),
        ]

    def test_keys_that_differ_little_differ_in_them(self) -> None:
        keys = ["key", "Key", "key ", " key", "keys", "ke", "k\0ey", ""]
        assert len({PreSharedKey(key).fingerprints()[0] for key in keys}) == len(keys)


def test_equal_keys() -> None:
    assert PreSharedKey("ñ") == PreSharedKey("ñ")
    assert PreSharedKey("a") != PreSharedKey("b")
    assert PreSharedKey("a") != "a"


def test_a_key_is_no_key_of_a_dict() -> None:
    with pytest.raises(TypeError):
        hash(PSK)
