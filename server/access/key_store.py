"""The keys in the database: make, find, change, revoke. Any thread may call."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from server.access.database import KEYS, Database, note_key_change
from server.access.keys import (
    DEFAULT_SCOPES,
    NO_LIMITS,
    Key,
    Limits,
    Scope,
    Snapshot,
    digest,
    new_id,
    new_secret,
    shown,
)
from server.errors import KeyNotFound, KeyRefused


class KeyStore:
    """The keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        name: str,
        *,
        secret: str | None = None,
        scopes: Iterable[Scope] = DEFAULT_SCOPES,
        models: Iterable[str] = (),
        limits: Limits = NO_LIMITS,
        expires_at: int | None = None,
    ) -> tuple[Key, str]:
        """A new key and its secret, which is stored nowhere.

        Args:
            secret: an existing one to take over; default: a new one.

        Raises:
            KeyRefused: the name or the secret is taken.
            DatabaseError: the database is away.
        """
        secret = secret or new_secret()
        key = Key(
            id=new_id(),
            name=name,
            shown=shown(secret),
            scopes=frozenset(scopes),
            models=frozenset(models),
            limits=limits,
            created_at=int(time.time()),
            expires_at=expires_at,
        )
        with self._database.write() as connection:
            if connection.scalar(select(KEYS.c.id).where(KEYS.c.name == name)):
                raise KeyRefused(f"there is a key named {name} already")
            if _has_digest(connection, digest(secret)):
                raise KeyRefused("there is a key with this secret already")
            try:
                connection.execute(insert(KEYS).values(digest=digest(secret), **_columns(key)))
            except IntegrityError:  # somebody else was faster
                raise KeyRefused(f"there is a key named {name} already") from None
            note_key_change(connection)
        return key, secret

    def find(self, name: str) -> Key:
        """The key with this id or name.

        Raises:
            KeyNotFound: there is none.
        """
        with self._database.read() as connection:
            return _key(self._row(connection, name))

    def all(self) -> list[Key]:
        """Every key, also expired and revoked ones, as they were made."""
        return list(self.snapshot().keys)

    def version(self) -> str:
        """Another one after each change of a key."""
        with self._database.read() as connection:
            return self._database.keys_version(connection)

    def snapshot(self) -> Snapshot:
        """All keys at once."""
        with self._database.read() as connection:
            version = self._database.keys_version(connection)
            rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at, KEYS.c.id)).all()
        keys = tuple(map(_key, rows))
        digests: dict[str, tuple[Key, int | None]] = {}
        for row, key in zip(rows, keys, strict=True):
            digests[row.digest] = (key, None)
            if row.previous_digest is not None:
                digests[row.previous_digest] = (key, row.previous_until)
        return Snapshot(version, keys, digests)

    def change(self, name: str, **columns: Any) -> Key:
        """Set fields of a key, by their names in the table; within seconds every server knows.

        Raises:
            KeyNotFound: there is none of this id or name.
        """
        with self._database.write() as connection:
            key_id = self._row(connection, name).id
            values = _as_stored(columns)
            connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(**values))
            note_key_change(connection)
            return _key(self._row(connection, key_id))

    def revoke(self, name: str) -> Key:
        """End a key for good; its usage stays, and so does the time of a revocation before."""
        key = self.find(name)
        return key if key.revoked_at is not None else self.change(name, revoked_at=int(time.time()))

    def rotate(self, name: str, *, grace_s: int = 0) -> tuple[Key, str]:
        """Give a key a new secret; the old one is valid for a further `grace_s`.

        Raises:
            KeyNotFound: there is no such key.
            KeyRefused: it was revoked, or the grace of the rotation before is not over.
        """
        secret = new_secret()
        now = int(time.time())
        with self._database.write() as connection:
            row = self._row(connection, name)
            if row.revoked_at is not None:
                raise KeyRefused(f"key {name} was revoked; create a new one")
            if grace_s and row.previous_until is not None and row.previous_until > now:
                raise KeyRefused(
                    f"the secret before this one of key {name} is valid for a further "
                    f"{row.previous_until - now} s, and only one can be; without --grace both end now"
                )
            changed = update(KEYS).where(KEYS.c.id == row.id)
            connection.execute(
                changed.values(
                    digest=digest(secret),
                    shown=shown(secret),
                    previous_digest=row.digest if grace_s else None,
                    previous_until=now + grace_s if grace_s else None,
                )
            )
            note_key_change(connection)
            return _key(self._row(connection, row.id)), secret

    def keep_ended(self, known: Snapshot, *, older: bool) -> list[str]:
        """End what had ended before this database came into the place of another one.

        A key is revoked for good, and so is a secret that was rotated out.

        Args:
            known: the keys of the other one.
            older: this is an older copy of it: where secrets differ, they were rotated since.

        Returns:
            The names of the keys that differed.

        Raises:
            DatabaseError: the database is away.
        """
        ended = []
        with self._database.write() as connection:
            rows = {row.id: row for row in connection.execute(select(KEYS))}
            for key in known.keys:
                row = rows.get(key.id)
                values: dict[str, Any] = {}
                if row is not None and key.revoked_at is not None and row.revoked_at is None:
                    values["revoked_at"] = key.revoked_at
                if row is not None and older:
                    values |= _rotated_since(connection, row, known, key)
                if values:
                    connection.execute(update(KEYS).where(KEYS.c.id == key.id).values(**values))
                    ended.append(key.name)
            if ended:
                note_key_change(connection)
        return ended

    def knows(self, secret: str) -> bool:
        """Whether a key has this secret."""
        with self._database.read() as connection:
            return _has_digest(connection, digest(secret))

    @staticmethod
    def _row(connection: Connection, name: str) -> Row[Any]:
        found = connection.execute(
            select(KEYS).where(or_(KEYS.c.id == name, KEYS.c.name == name))
        ).first()
        if found is None:
            raise KeyNotFound(name)
        return found


def _has_digest(connection: Connection, secret_digest: str) -> bool:
    same = or_(KEYS.c.digest == secret_digest, KEYS.c.previous_digest == secret_digest)
    return connection.scalar(select(KEYS.c.id).where(same)) is not None


def _rotated_since(
    connection: Connection, row: Row[Any], known: Snapshot, key: Key
) -> dict[str, Any]:
    """What is to be changed of a row that holds a secret from before a rotation."""
    opening = {one: until for one, (its, until) in known.digests.items() if its.id == key.id}
    current = next(one for one, until in opening.items() if until is None)
    if row.digest == current or _has_digest(connection, current):
        return {}
    previous = next((one for one, until in opening.items() if until is not None), None)
    return {
        "digest": current,
        "shown": key.shown,
        "previous_digest": previous,
        "previous_until": opening[previous] if previous is not None else None,
    }


def _columns(key: Key) -> dict[str, Any]:
    columns = {
        "id": key.id,
        "name": key.name,
        "shown": key.shown,
        "scopes": key.scopes,
        "models": key.models,
        **dataclasses.asdict(key.limits),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
    }
    return _as_stored(columns)


def _as_stored(columns: dict[str, Any]) -> dict[str, Any]:
    stored = dict(columns)
    if "scopes" in columns:
        stored["scopes"] = " ".join(sorted(columns["scopes"]))
    if "models" in columns:
        stored["models"] = json.dumps(sorted(columns["models"]))
    return stored


def _key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        name=row.name,
        shown=row.shown,
        scopes=frozenset(scope for scope in Scope if scope in row.scopes.split()),
        models=frozenset(json.loads(row.models)),
        limits=Limits(
            requests_per_minute=row.requests_per_minute,
            tokens_per_minute=row.tokens_per_minute,
            token_budget=row.token_budget,
        ),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        spent_tokens=row.spent_tokens,
    )
