from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.keyring import Keyring
from server.access.keys import ANONYMOUS, Key, Snapshot, digest
from server.errors import (
    ApiKeyExpired,
    ApiKeyRevoked,
    AuthenticationFailed,
    IncorrectApiKey,
    MissingApiKey,
)

NOW = int(time.time())


def snapshot(*entries: tuple[Key, str, int | None]) -> Snapshot:
    """Keys with their secrets, and until when each opens."""
    keys = tuple(key for key, _, _ in entries)
    return Snapshot("1", keys, {digest(secret): (key, until) for key, secret, until in entries})


def key(key_id: str, expires_at: int | None = None, revoked_at: int | None = None) -> Key:
    return Key(id=key_id, name=key_id, expires_at=expires_at, revoked_at=revoked_at)


def ring(*entries: tuple[Key, str, int | None], secrets: tuple[str, ...] = ()) -> Keyring:
    keyring = Keyring(secrets)
    keyring.replace(snapshot(*entries))
    return keyring


def test_without_any_key_everybody_is_anonymous() -> None:
    keyring = ring()
    assert not keyring.asks
    for header in (None, "Bearer sk-anything", "nonsense"):
        assert keyring.find(header) is ANONYMOUS


def test_keys_given_at_start_and_stored_ones_are_both_found() -> None:
    keyring = ring((key("one"), "sk-1", None), (key("two"), "sk-2", None), secrets=("sk-s",))
    assert keyring.asks
    assert keyring.find("Bearer sk-1").id == "one"
    assert keyring.find("Bearer sk-2").id == "two"
    assert keyring.find("Bearer sk-s").id.startswith("static-")


def test_two_keys_given_at_start_have_shares_of_their_own() -> None:
    keyring = Keyring(["sk-a", "sk-b"])
    assert keyring.find("Bearer sk-a").id != keyring.find("Bearer sk-b").id


@pytest.mark.parametrize("header", [None, "Basic sk-1", "Bearer"])
def test_a_missing_key_is_told_from_a_wrong_one(header: str | None) -> None:
    keyring = ring((key("one"), "sk-1", None))
    with pytest.raises(MissingApiKey):
        keyring.find(header)
    with pytest.raises(IncorrectApiKey, match=r"^Incorrect API key provided"):
        keyring.find("Bearer sk-wrong")


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ((key("k", revoked_at=NOW), "sk-1", None), ApiKeyRevoked),
        ((key("k", expires_at=NOW - 1), "sk-1", None), ApiKeyExpired),
        ((key("k"), "sk-1", NOW - 1), ApiKeyRevoked),  # a secret that was rotated out
    ],
)
def test_what_is_no_longer_valid_is_refused_as_incorrect(
    entry: tuple[Key, str, int | None], error: type[IncorrectApiKey]
) -> None:
    with pytest.raises(error, match=r"^Incorrect API key provided"):
        ring(entry).find("Bearer sk-1")


def test_what_is_valid_for_a_while_is_found_until_then() -> None:
    later = int(time.time()) + 60
    keyring = ring((key("k", expires_at=later), "sk-1", later))
    assert keyring.find("Bearer sk-1").id == "k"


def test_a_server_that_asked_for_keys_goes_on_asking() -> None:
    keyring = ring((key("one"), "sk-1", None))
    keyring.replace(snapshot())
    with pytest.raises(IncorrectApiKey):
        keyring.find("Bearer sk-1")


SECRET = "sk-test-0123456789abcdef"


@pytest.mark.parametrize(
    "sent",
    [
        *(SECRET.upper(), SECRET[:-1], SECRET + "x", SECRET[::-1]),
        *(f"{SECRET} {SECRET}", f"{SECRET},sk-other", "é" * 30),
    ],
)
def test_what_is_not_exactly_a_secret_is_refused(sent: str) -> None:
    for keyring in (Keyring([SECRET]), ring((key("k"), SECRET, None))):
        with pytest.raises(IncorrectApiKey):
            keyring.find(f"Bearer {sent}")


@given(st.binary(max_size=80))
def test_any_bytes_in_the_header_are_refused_as_an_authentication_failure(sent: bytes) -> None:
    # HTTP frameworks hand headers over as Latin-1.
    for header in (sent.decode("latin-1"), "Bearer " + sent.decode("latin-1")):
        with pytest.raises(AuthenticationFailed):
            Keyring([SECRET]).find(header)
