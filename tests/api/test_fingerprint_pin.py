from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from server.api.fingerprint_pin import EXPECT_FINGERPRINT, check_fingerprint
from server.catalog.card import Card
from server.errors import FingerprintMismatch, InvalidRequest


def pinned(*values: str) -> Headers:
    return Headers(raw=[(EXPECT_FINGERPRINT.encode(), value.encode()) for value in values])


def check(headers: Headers, card: Card) -> None:
    check_fingerprint(headers, card.name, card.fingerprint)


def test_the_models_own_fingerprint_or_none_passes(plain_card: Card) -> None:
    check(pinned(), plain_card)
    check(pinned(plain_card.fingerprint), plain_card)
    check(pinned(f" {plain_card.fingerprint.upper()} "), plain_card)


def test_another_fingerprint_is_refused(plain_card: Card) -> None:
    with pytest.raises(FingerprintMismatch, match=plain_card.fingerprint):
        check(pinned("0" * 16), plain_card)


@pytest.mark.parametrize("values", [[""], ["0" * 15], ["x" * 16], ["0" * 16, "0" * 16]])
def test_what_is_no_fingerprint_is_refused(plain_card: Card, values: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="16 hex digits") as caught:
        check(pinned(*values), plain_card)
    assert caught.value.param == EXPECT_FINGERPRINT
