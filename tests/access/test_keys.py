from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.keys import (
    ANONYMOUS,
    Key,
    Limits,
    Scope,
    digest,
    new_id,
    new_secret,
    read_secret,
    shown,
    static_key,
)
from server.errors import MissingApiKey, ModelNotAllowed, ScopeMissing

words = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


def test_secrets_are_256_random_bits_behind_openais_prefix() -> None:
    secrets = {new_secret() for _ in range(1_000)}
    assert len(secrets) == 1_000
    assert all(secret.startswith("sk-") and len(secret) == 3 + 43 for secret in secrets)
    assert len({new_id() for _ in range(1_000)}) == 1_000


def test_the_digest_is_sha256() -> None:
    assert digest("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(words)
def test_what_is_shown_never_gives_a_short_secret_away(secret: str) -> None:
    part = shown(secret)
    assert secret.startswith(part)
    assert len(part) <= 7
    assert len(secret) >= 32 or not part


@given(words)
def test_a_static_key_tells_nothing_of_its_secret(secret: str) -> None:
    key = static_key(secret)
    assert secret not in repr(key) or len(secret) <= 2 or secret in repr(static_key("other"))
    assert key.limits == Limits()
    for scope in Scope:
        key.check_scope(scope)


@given(st.sampled_from(["Bearer", "bearer", "BEARER"]), st.sampled_from([" ", "  ", " \t"]), words)
def test_the_scheme_may_be_in_any_case(scheme: str, space: str, secret: str) -> None:
    assert read_secret(f"{scheme}{space}{secret}") == secret


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic c2s=", "sk-x", "  "])
def test_a_header_without_a_secret_is_refused(header: str | None) -> None:
    with pytest.raises(MissingApiKey):
        read_secret(header)


def test_a_key_is_for_its_scopes_only() -> None:
    key = Key(id="key_1", name="n", scopes=frozenset({Scope.EMBEDDINGS}))
    key.check_scope(Scope.EMBEDDINGS)
    for scope in (Scope.MODELS, Scope.ADMIN):
        with pytest.raises(ScopeMissing, match=scope):
            key.check_scope(scope)


def test_a_key_may_use_its_models_by_name_or_alias_and_without_any_all() -> None:
    key = Key(id="key_1", name="n", models=frozenset({"small", "alias"}))
    key.check_model("small", ())
    key.check_model("large", ("other", "alias"))
    with pytest.raises(ModelNotAllowed, match="large"):
        key.check_model("large", ("other",))
    ANONYMOUS.check_model("large", ())


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), False),
        (Limits(token_budget=1), False),
        (Limits(requests_per_minute=1), True),
        (Limits(tokens_per_minute=1), True),
    ],
)
def test_limits_by_the_minute_are_told_from_a_budget(limits: Limits, expected: bool) -> None:
    assert limits.by_the_minute is expected
