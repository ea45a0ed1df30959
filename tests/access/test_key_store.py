from __future__ import annotations

import time

import pytest

from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits, Scope, digest
from server.errors import KeyNotFound, KeyRefused

LIMITS = Limits(requests_per_minute=60, tokens_per_minute=2**40, token_budget=2**50)


def test_a_key_is_found_as_it_was_made_by_name_and_id(store: KeyStore) -> None:
    key, _ = store.create(
        "team a",
        scopes=[Scope.ADMIN, Scope.MODELS],
        models=["b/x", "a"],
        limits=LIMITS,
        expires_at=2_000_000_000,
    )
    assert store.find("team a") == store.find(key.id) == key
    assert key.limits == LIMITS
    assert key.models == {"a", "b/x"}
    assert key.scopes == {Scope.ADMIN, Scope.MODELS}
    assert abs(key.created_at - time.time()) < 60


def test_the_secret_is_not_in_the_database(database: Database, store: KeyStore) -> None:
    _, secret = store.create("team")
    with database.read() as connection:
        rows = connection.exec_driver_sql("SELECT * FROM embedding_server_keys").all()
    assert secret[7:] not in str(rows)
    assert digest(secret) in str(rows)


def test_neither_a_name_nor_a_secret_is_given_twice(store: KeyStore) -> None:
    _, secret = store.create("team")
    with pytest.raises(KeyRefused, match="team"):
        store.create("team")
    with pytest.raises(KeyRefused, match="secret") as caught:
        store.create("other", secret=secret)
    assert secret not in caught.value.message
    store.revoke("team")
    with pytest.raises(KeyRefused, match="secret"):
        store.create("other", secret=secret)
    assert [key.name for key in store.all()] == ["team"]


def test_an_unknown_key_is_refused_by_every_command(store: KeyStore) -> None:
    for ask in (store.find, store.revoke, store.rotate, store.change):
        with pytest.raises(KeyNotFound, match="nobody"):
            ask("nobody")


def test_every_change_and_nothing_else_makes_a_new_version(store: KeyStore) -> None:
    versions = [store.version()]
    store.create("team")
    versions.append(store.version())
    store.change("team", token_budget=5)
    versions.append(store.version())
    store.rotate("team")
    versions.append(store.version())
    store.revoke("team")
    versions.append(store.version())
    assert len(set(versions)) == 5
    store.find("team")
    store.all()
    assert store.version() == versions[-1] == store.snapshot().version


def test_what_is_changed_is_changed_and_the_rest_stays(store: KeyStore) -> None:
    made, _ = store.create("team", models=["a"], limits=LIMITS)
    changed = store.change("team", tokens_per_minute=None, models=[], scopes=[Scope.ADMIN])
    assert changed == store.find("team")
    assert changed.limits == Limits(requests_per_minute=60, token_budget=2**50)
    assert changed.models == frozenset()
    assert changed.scopes == {Scope.ADMIN}
    assert (changed.id, changed.created_at) == (made.id, made.created_at)


def test_a_rotated_key_opens_by_its_new_secret_alone(store: KeyStore) -> None:
    made, old = store.create("team", limits=LIMITS)
    rotated, new = store.rotate("team")
    digests = store.snapshot().digests
    assert set(digests) == {digest(new)}
    assert (rotated.id, rotated.limits) == (made.id, LIMITS)
    assert new.startswith(rotated.shown)
    assert rotated.shown != made.shown
    assert not store.knows(old)


def test_with_grace_the_old_secret_opens_for_a_while(store: KeyStore) -> None:
    _, old = store.create("team")
    _, new = store.rotate("team", grace_s=100)
    digests = store.snapshot().digests
    assert digests[digest(new)][1] is None
    until = digests[digest(old)][1]
    assert until is not None
    assert 90 < until - time.time() <= 100
    with pytest.raises(KeyRefused):  # still somebody's
        store.create("other", secret=old)


def test_a_promised_grace_is_not_cut_short_by_another_rotation(store: KeyStore) -> None:
    _, first = store.create("team")
    store.rotate("team", grace_s=100)
    with pytest.raises(KeyRefused, match="valid for a further"):
        store.rotate("team", grace_s=100)
    assert store.knows(first)
    store.rotate("team")  # at once, for both
    assert not store.knows(first)


def test_a_scope_of_a_newer_server_is_no_scope_here(database: Database, store: KeyStore) -> None:
    store.create("team")
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE embedding_server_keys SET scopes = 'batch models'")
    assert store.find("team").scopes == {Scope.MODELS}


def test_a_revoked_key_stays_and_cannot_be_rotated(store: KeyStore) -> None:
    store.create("team")
    revoked = store.revoke("team")
    assert revoked.revoked_at is not None
    store.change("team", revoked_at=revoked.revoked_at - 1_000)
    assert store.revoke("team").revoked_at == revoked.revoked_at - 1_000
    with pytest.raises(KeyRefused, match="revoked"):
        store.rotate("team")
    (key,) = store.all()
    assert key.revoked_at is not None


def test_another_store_of_the_same_database_sees_the_same(
    database_url: str, store: KeyStore
) -> None:
    store.create("team")
    other = Database(database_url)
    assert KeyStore(other).find("team") == store.find("team")
    other.close()
