"""Keys with names, rights by topic, and tokens: who a peer is, and its rights."""

from __future__ import annotations

import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.raw_v2_peer import secret_of_token
from wsqueue.config.tokens import Token
from wsqueue.protocol.access import (
    ANYBODY,
    TOKEN_TOLERANCE_SECONDS,
    Identity,
    KeyRing,
    NamedKey,
    Rights,
    is_pattern,
)
from wsqueue.protocol.close import CloseCode, PeerError
from wsqueue.protocol.hello import ClassicHandshake
from wsqueue.protocol.hello_v2 import Context, V2Handshake
from wsqueue.protocol.keys import MAX_TOKEN_BYTES, Order, PreSharedKey, Role

from ...support.session_pair import few

NOW = 1_790_000_000.0
HOUR = 3600.0
CONTEXT = Context("/subscribe", "wsqueue.v2", b"")
BILLING = NamedKey(
    PreSharedKey("billing's", "billing's next", name="billing"), Rights(("orders/*",), ("news", "invoices/*"))
)
WATCH = NamedKey(PreSharedKey("watch's", name="watch"), Rights(status=True))
RING = KeyRing(PreSharedKey("everybody's"), [BILLING, WATCH])
LENT: dict[str, Any] = {"who": "alice", "publish": ["*"], "subscribe": ["news", "secret"]}


def ring_of(*secrets: str, rights: Rights | None = BILLING.rights) -> KeyRing:
    """Return a ring with the key of one name only."""
    return KeyRing(None, [NamedKey(PreSharedKey(*secrets, name="billing"), rights)])


def token(psk: PreSharedKey = BILLING.psk, **changes: Any) -> Token:
    return Token.make(psk, now=NOW, **LENT | changes)


def greet(psk: PreSharedKey, ring: KeyRing = RING, now: float = NOW) -> Identity:
    """Return who an acceptor takes an initiator for; both ends have proved themselves."""
    initiator = V2Handshake(Role.INITIATOR, psk, CONTEXT)
    acceptor = V2Handshake(Role.ACCEPTOR, ring, CONTEXT, now)
    challenge = acceptor.begin()
    assert challenge is not None
    proof = initiator.receive(challenge)
    assert proof is not None
    answer = acceptor.receive(proof)
    assert answer is not None
    initiator.receive(answer)
    assert initiator.done
    assert acceptor.peer is not None
    return acceptor.peer.identity


def refusal(psk: PreSharedKey, ring: KeyRing = RING, now: float = NOW) -> CloseCode:
    with pytest.raises(PeerError) as caught:
        greet(psk, ring, now)
    return caught.value.code


def edited(text: str, **changes: Any) -> Token:
    """Return a token whose claims were changed by somebody who has only the token."""
    encoded, secret = text.split(".")
    claims = json.loads(base64.urlsafe_b64decode(encoded + "==")) | changes
    return Token(f"{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode()}.{secret}")


class TestRights:
    @pytest.mark.parametrize(
        ("patterns", "topic", "allowed"),
        [
            ((), "news", False),
            (("news",), "news", True),
            (("news",), "news/today", False),
            (("news",), "new", False),
            (("news/*",), "news/", True),
            (("news/*",), "news/today", True),
            (("news/*",), "news", False),
            (("*",), "", True),
            (("a", "b*"), "bc", True),
            (("a*c",), "abc", False),
            (("a*c",), "a*c", True),
        ],
    )
    def test_a_pattern_is_a_topic_or_its_beginning(
        self, patterns: tuple[str, ...], topic: str, *, allowed: bool
    ) -> None:
        identity = Identity("one", rights=(Rights(publish=patterns),))
        assert identity.may_publish(topic) is allowed
        assert not identity.may_subscribe(topic)
        assert Identity("one", rights=(Rights(subscribe=patterns),)).may_subscribe(topic) is allowed

    @pytest.mark.parametrize(
        ("patterns", "prefix", "allowed"),
        [
            (("*",), "", True),
            (("s/*",), "s/", True),
            (("s/*",), "s/a", True),
            (("s/*",), "s", False),
            (("s/*",), "", False),
            (("s/",), "s/", False),
            (("s/a/*", "s/b/*"), "s/", False),
            (("s/a/*", "s/b/*"), "s/b/", True),
            ((), "s/", False),
        ],
    )
    def test_a_prefix_is_allowed_if_all_its_topics_are(
        self, patterns: tuple[str, ...], prefix: str, *, allowed: bool
    ) -> None:
        identity = Identity("one", rights=(Rights(subscribe=patterns),))
        assert identity.may_follow(prefix) is allowed
        assert not Identity("one", "who", (*identity.rights, Rights())).may_follow(prefix)

    @few
    @given(
        st.lists(st.text("ab*", min_size=1, max_size=3).filter(is_pattern)).map(tuple),
        st.text("ab", max_size=3),
        st.text("ab"),
    )
    def test_who_may_follow_a_prefix_may_subscribe_to_its_topics(
        self, patterns: tuple[str, ...], prefix: str, rest: str
    ) -> None:
        identity = Identity("one", rights=(Rights(subscribe=patterns),))
        assert identity.may_follow(prefix) <= identity.may_subscribe(prefix + rest)
        # A character that no pattern has shows that only an end with `*` counts.
        assert identity.may_follow(prefix) is identity.may_subscribe(f"{prefix}c")

    def test_the_key_without_a_name_may_do_everything(self) -> None:
        assert ANYBODY.may_publish("any")
        assert ANYBODY.may_subscribe("any")
        assert ANYBODY.may_follow("")
        assert ANYBODY.may_read_reports

    @few
    @given(*(st.lists(st.text("ab*", min_size=1, max_size=3)).map(tuple) for _ in range(2)), st.text("ab*"))
    def test_a_token_never_widens_the_key(
        self, keys: tuple[str, ...], tokens: tuple[str, ...], topic: str
    ) -> None:
        key, both = Rights(keys, keys), (Rights(keys, keys), Rights(tokens, tokens))
        narrowed, whole = Identity("one", "who", both), Identity("one", rights=(key,))
        assert narrowed.may_publish(topic) <= whole.may_publish(topic)
        assert narrowed.may_subscribe(topic) <= whole.may_subscribe(topic)


class TestNamedKeys:
    def test_the_name_says_which_key_is_proved(self) -> None:
        assert greet(PreSharedKey("everybody's")) == ANYBODY
        for secret in ("billing's", "billing's next"):
            assert greet(PreSharedKey(secret, name="billing")) == BILLING.identity
        assert str(BILLING.identity) == "billing"

    @pytest.mark.parametrize(
        "psk",
        [
            PreSharedKey("billing's"),
            PreSharedKey("billing's", name="watch"),
            PreSharedKey("billing's", name="nobody"),
            PreSharedKey("everybody's", name="billing"),
            PreSharedKey("everybody's", name="nobody"),
        ],
    )
    def test_a_key_under_another_name(self, psk: PreSharedKey) -> None:
        assert refusal(psk) is CloseCode.WRONG_ANSWER

    def test_without_a_key_for_everybody(self) -> None:
        ring = KeyRing(None, [BILLING])
        assert refusal(PreSharedKey("everybody's"), ring) is CloseCode.WRONG_ANSWER
        assert greet(PreSharedKey("billing's", name="billing"), ring) == BILLING.identity

    @pytest.mark.parametrize("order", Order)
    @pytest.mark.parametrize(
        ("secret", "identity"),
        [("everybody's", ANYBODY), ("billing's next", BILLING.identity), ("watch's", WATCH.identity)],
    )
    def test_a_classic_peers_key_says_who_it_is(self, secret: str, identity: Identity, order: Order) -> None:
        acceptor = ClassicHandshake(Role.ACCEPTOR, RING)
        initiator = ClassicHandshake(Role.INITIATOR, PreSharedKey(secret), order)
        answer = initiator.receive(acceptor.begin())
        assert answer is not None
        assert acceptor.receive(initiator.begin()) is None
        last = acceptor.receive(answer)
        assert last is not None
        initiator.receive(last)
        assert initiator.done
        assert acceptor.peer is not None
        assert acceptor.peer.identity == identity

    def test_a_classic_peer_with_another_key(self) -> None:
        acceptor = ClassicHandshake(Role.ACCEPTOR, RING)
        answer = ClassicHandshake(Role.INITIATOR, PreSharedKey("other")).receive(acceptor.begin())
        assert answer is not None
        with pytest.raises(PeerError) as caught:
            acceptor.receive(answer)
        assert caught.value.code is CloseCode.WRONG_ANSWER


class TestTokens:
    def test_a_token_says_who_its_user_is(self) -> None:
        identity = greet(token())
        assert str(identity) == "billing:alice"
        assert (identity.name, identity.who) == ("billing", "alice")
        assert identity.ends == NOW + HOUR + TOKEN_TOLERANCE_SECONDS
        # The key may publish to orders, and the token to all that the key may.
        assert identity.may_publish("orders/1")
        assert not identity.may_publish("news")
        assert identity.may_subscribe("news")
        assert not identity.may_subscribe("secret")
        assert not identity.may_subscribe("invoices/1")

    def test_the_key_without_a_name_makes_tokens_too(self) -> None:
        identity = greet(token(psk=PreSharedKey("everybody's")))
        assert (str(identity), identity.may_publish("any"), identity.may_subscribe("any")) == (
            ":alice",
            True,
            False,
        )

    def test_of_each_key_of_a_name(self) -> None:
        assert greet(token(psk=PreSharedKey("billing's next", name="billing"))).name == "billing"

    def test_as_other_code_makes_it(self) -> None:
        claims = json.dumps({"issued": NOW, "expires": NOW + 1, "key": "billing", "who": "bob"}).encode()
        secret = secret_of_token("billing's", claims)
        assert greet(Token(f"{base64.urlsafe_b64encode(claims).decode()}.{secret}")).who == "bob"

    @pytest.mark.parametrize(
        ("now", "code"),
        [
            (NOW - TOKEN_TOLERANCE_SECONDS - 1, CloseCode.TOKEN_ENDED),
            (NOW - TOKEN_TOLERANCE_SECONDS, None),
            (NOW + HOUR + TOKEN_TOLERANCE_SECONDS - 1, None),
            (NOW + HOUR + TOKEN_TOLERANCE_SECONDS, CloseCode.TOKEN_ENDED),
        ],
    )
    def test_it_has_its_time(self, now: float, code: CloseCode | None) -> None:
        if code is None:
            greet(token(), now=now)
        else:
            assert refusal(token(), now=now) is code

    @pytest.mark.parametrize(
        "changes",
        [
            {"expires": NOW + 10 * HOUR},
            {"who": "bob"},
            {"publish": ["orders/*", "*"]},
            {"status": True},
            {"key": "watch"},
            {"key": ""},
            {"issued": NOW + 1},
        ],
    )
    def test_one_that_was_changed(self, changes: dict[str, Any]) -> None:
        assert refusal(edited(token().text, **changes)) is CloseCode.WRONG_ANSWER

    def test_one_whose_key_is_gone(self) -> None:
        assert refusal(token(), KeyRing(PreSharedKey("everybody's"), [WATCH])) is CloseCode.WRONG_ANSWER
        other = NamedKey(PreSharedKey("another", name="billing"), BILLING.rights)
        assert refusal(token(), KeyRing(None, [other])) is CloseCode.WRONG_ANSWER
        assert refusal(token(psk=PreSharedKey("everybody's")), KeyRing(None)) is CloseCode.WRONG_ANSWER

    def test_tokens_of_a_time_are_revoked(self) -> None:
        later = msgspec.structs.replace(BILLING, not_before=NOW + 1)
        assert refusal(token(), KeyRing(None, [later])) is CloseCode.TOKEN_ENDED
        assert greet(Token.make(BILLING.psk, now=NOW + 1), KeyRing(None, [later]))

    def test_a_token_is_no_key_that_makes_tokens(self) -> None:
        assert refusal(token(psk=token())) is CloseCode.WRONG_ANSWER

    def test_where_none_are_taken(self) -> None:
        """A token opens no connection between nodes."""
        ring = KeyRing(PreSharedKey("everybody's"), tokens=False)
        assert refusal(token(psk=PreSharedKey("everybody's")), ring) is CloseCode.WRONG_ANSWER

    @pytest.mark.parametrize(
        "text", ["", ".", "abc", "e30.abc", "é.abc", f"{'a' * 8000}.b", "eyJpc3N1ZWQiOjEsImV4cGlyZXMiOjJ9."]
    )
    def test_a_text_that_is_none(self, text: str) -> None:
        with pytest.raises(ValueError, match="the text is no token"):
            Token(text)

    def test_a_claim_that_is_not_known_is_refused(self) -> None:
        """It may be a restriction of a newer node."""
        claims = json.dumps({"issued": NOW, "expires": NOW + HOUR, "only_from": "10.0.0.1"}).encode()
        with pytest.raises(ValueError, match="no token"):
            Token(f"{base64.urlsafe_b64encode(claims).decode()}.{secret_of_token('key', claims)}")

    def test_claims_that_are_too_long(self) -> None:
        topics = tuple(f"topic {number}" for number in range(400))
        with pytest.raises(ValueError, match=f"expected at most {MAX_TOKEN_BYTES}"):
            token(publish=topics)

    def test_its_secret_is_not_shown(self) -> None:
        secret = token().text.partition(".")[2]
        assert secret not in repr(token())
        assert "alice" in repr(token())

    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"publish": "orders"}, "publish is a str"),
            ({"subscribe": ["a*b"]}, "expected a topic, or its beginning"),
            ({"subscribe": [""]}, "expected a topic, or its beginning"),
            ({"who": "x" * 65}, "not the claims of a token"),
            ({"key": "k\ud800"}, "not UTF-8"),
        ],
    )
    def test_values_that_cannot_be_used(self, changes: dict[str, Any], problem: str) -> None:
        with pytest.raises(ValueError, match=problem):
            token(psk=changes.pop("key", BILLING.psk), **changes)


class TestReloads:
    """Which peers a new ring of keys still takes."""

    @pytest.mark.parametrize(
        ("ring", "taken"),
        [
            (RING, True),
            (KeyRing(None, [BILLING]), True),
            # Its key is the second one now.
            (ring_of("new", "billing's"), True),
            (ring_of("new"), False),
            (ring_of("billing's", rights=Rights(("*",), ("*",))), False),
            (KeyRing(PreSharedKey("everybody's"), [WATCH]), False),
        ],
    )
    @pytest.mark.parametrize("lent", [False, True])
    def test_with_the_same_key_and_rights(self, ring: KeyRing, *, taken: bool, lent: bool) -> None:
        psk = token() if lent else PreSharedKey("billing's", name="billing")
        acceptor = V2Handshake(Role.ACCEPTOR, RING, CONTEXT, NOW)
        initiator = V2Handshake(Role.INITIATOR, psk, CONTEXT)
        challenge = acceptor.begin()
        assert challenge is not None
        proof = initiator.receive(challenge)
        assert proof is not None
        acceptor.receive(proof)
        assert acceptor.peer is not None
        assert ring.still_takes(acceptor.peer, NOW) is taken
        assert "billing's" not in repr(acceptor.peer)
