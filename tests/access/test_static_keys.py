from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.static_keys import ANONYMOUS, StaticKeys
from server.errors import AuthenticationFailed, IncorrectApiKey, MissingApiKey

KEY = "sk-test-0123456789abcdef"
OTHER = "sk-other-0123456789abcde"

visible = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


@pytest.fixture
def keys() -> StaticKeys:
    return StaticKeys([OTHER, KEY])


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_is_read_in_any_case(keys: StaticKeys, scheme: str) -> None:
    keys.check(f"{scheme} {KEY}")


@pytest.mark.parametrize("header", [f"  Bearer {KEY}", f"Bearer   {KEY}", f"Bearer {KEY}  "])
def test_extra_blanks_around_the_key_do_no_harm(keys: StaticKeys, header: str) -> None:
    keys.check(header)


@pytest.mark.parametrize("key", [OTHER, KEY])
def test_each_of_several_keys_opens(keys: StaticKeys, key: str) -> None:
    keys.check(f"Bearer {key}")


@pytest.mark.parametrize(
    "header",
    [None, "", " ", "Bearer", "Bearer ", KEY, f"Basic {KEY}", f"Bearer{KEY}", f"Token {KEY}"],
)
def test_a_header_without_a_bearer_key_is_told_how_to_send_one(
    keys: StaticKeys, header: str | None
) -> None:
    with pytest.raises(MissingApiKey, match="Authorization: Bearer YOUR_KEY"):
        keys.check(header)


@pytest.mark.parametrize(
    "sent",
    [KEY.upper(), KEY[:-1], KEY + "x", KEY[::-1], f"{KEY} {KEY}", f"{KEY},{OTHER}", "é" * 30],
)
def test_a_key_that_is_not_exactly_one_of_the_servers_is_refused(
    keys: StaticKeys, sent: str
) -> None:
    with pytest.raises(IncorrectApiKey):
        keys.check(f"Bearer {sent}")


@given(st.text(visible, min_size=1), st.text(visible, min_size=1))
def test_one_key_opens_and_every_other_does_not(key: str, sent: str) -> None:
    keys = StaticKeys([key])
    keys.check(f"Bearer {key}")
    if sent != key:
        with pytest.raises(IncorrectApiKey):
            keys.check(f"Bearer {sent}")


@given(st.binary(max_size=80))
def test_any_bytes_in_the_header_are_refused_as_an_authentication_failure(sent: bytes) -> None:
    # HTTP frameworks hand headers over as Latin-1.
    with pytest.raises(AuthenticationFailed):
        StaticKeys([KEY]).check(sent.decode("latin-1"))
    with pytest.raises(AuthenticationFailed):
        StaticKeys([KEY]).check("Bearer " + sent.decode("latin-1"))


@pytest.mark.parametrize("header", [None, "", "Basic x", f"Bearer {KEY}"])
def test_without_keys_everybody_is_let_in_and_shares_one_name(header: str | None) -> None:
    assert StaticKeys([]).check(header) == ANONYMOUS


def test_each_key_has_a_name_of_its_own(keys: StaticKeys) -> None:
    names = [keys.check(f"Bearer {key}") for key in (KEY, OTHER)]
    assert names == [keys.check(f"bearer  {key}") for key in (KEY, OTHER)]
    assert len({*names, ANONYMOUS}) == 3


def test_the_keys_themselves_are_not_kept(keys: StaticKeys) -> None:
    kept = repr(keys) + repr(vars(keys))
    assert KEY not in kept
    assert OTHER not in kept
