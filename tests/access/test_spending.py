"""What a request costs its key, by how its work ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.access.access import Access
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from server.errors import ApiError, InferenceFailed, InvalidRequest, Overloaded
from server.settings import Settings


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (InvalidRequest("a token that the weights lack", param="input"), "100"),
        (Overloaded("too much is waiting", retry_after_s=1), "100"),
        (InferenceFailed("the model failed"), "40"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_only_work_that_was_begun_costs_tokens_of_the_minute(
    tmp_path: Path, error: ApiError, left: str
) -> None:
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    database = Database(url)
    _, secret = KeyStore(database).create("key", limits=Limits(tokens_per_minute=100))
    database.close()
    access = Access(Settings(database_url=url))
    key = access.find_key(f"Bearer {secret}")
    limits = access.limits_of(key)
    assert limits is not None
    with pytest.raises(type(error)):
        async with access.spend(key, limits, 60, model="any", user=None):
            raise error
    assert (await limits.headers())["x-ratelimit-remaining-tokens"] == left
    await access.close()
