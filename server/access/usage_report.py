"""What the ledger holds, summed up for people. Any thread may call."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from sqlalchemy import func, select

from server.access.database import KEYS, USAGE, Database


class By(enum.StrEnum):
    """What usage is summed up by."""

    KEY = "key"
    MODEL = "model"
    USER = "user"
    DAY = "day"


@dataclass(frozen=True, slots=True)
class Sum:
    """Usage of one key, model, user or day."""

    name: str  # of the key, if it is still known; empty for requests without a user
    requests: int
    tokens: int


def usage_by(
    database: Database, by: By, *, since: str | None = None, key: str | None = None
) -> list[Sum]:
    """Sums, the most tokens first; days in their order.

    Args:
        since: the first day, 2026-11-22, in UTC; default: all days.
        key: name or id of the only key to count; default: all keys.

    Raises:
        DatabaseError: the database is away.
    """
    name = {
        By.KEY: func.coalesce(KEYS.c.name, USAGE.c.key_id),
        By.MODEL: USAGE.c.model,
        By.USER: USAGE.c.user,
        By.DAY: USAGE.c.day,
    }[by]
    tokens = func.sum(USAGE.c.tokens)
    query = (
        select(name, func.sum(USAGE.c.requests), tokens)
        .select_from(USAGE.outerjoin(KEYS, KEYS.c.id == USAGE.c.key_id))
        .group_by(name)
        .order_by(*((name,) if by is By.DAY else (tokens.desc(), name)))
    )
    if since is not None:
        query = query.where(USAGE.c.day >= since)
    if key is not None:
        query = query.where((USAGE.c.key_id == key) | (KEYS.c.name == key))
    with database.read() as connection:
        rows = connection.execute(query).all()
    return [Sum(name, int(requests), int(tokens)) for name, requests, tokens in rows]
