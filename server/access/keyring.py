"""Who a request comes from: every valid key in memory, found by the digest of its secret.

Only SHA-256 digests are held. A lookup compares digests, never secrets, so its time may tell how
much of a digest is right but nothing about a secret that has it. Any thread may call.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from server.access.keys import ANONYMOUS, Key, Snapshot, digest, read_secret, static_key
from server.errors import ApiKeyExpired, ApiKeyRevoked, IncorrectApiKey


class Keyring:
    """The keys that were given at start and those of the database.

    Args:
        secrets: keys that may do everything, without limits.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._static = {digest(secret): static_key(secret) for secret in secrets}
        self._stored: dict[str, tuple[Key, int | None]] = {}
        # Once a key was asked for, it stays so: a database that is emptied opens no server.
        self.asks = bool(self._static)

    def replace(self, stored: Snapshot) -> None:
        """Take over what the database holds now."""
        self._stored = dict(stored.digests)
        self.asks = self.asks or bool(stored.keys)

    def knows(self, secret: str) -> bool:
        """Whether this is a key, also one that is valid no more."""
        sent = digest(secret)
        return sent in self._static or sent in self._stored

    def find(self, authorization: str | None) -> Key:
        """The key in an Authorization header; ANONYMOUS while none is asked for.

        Raises:
            MissingApiKey: the header is absent or of another form.
            IncorrectApiKey: the key is unknown.
            ApiKeyRevoked, ApiKeyExpired: it was valid once.
        """
        if not self.asks:
            return ANONYMOUS
        secret = read_secret(authorization)
        sent = digest(secret)
        if sent in self._static:
            return self._static[sent]
        key, until = self._stored.get(sent, (None, None))
        if key is None:
            raise IncorrectApiKey(secret)
        if key.revoked_at is not None or (until is not None and time.time() >= until):
            raise ApiKeyRevoked(secret)
        if key.expires_at is not None and time.time() >= key.expires_at:
            raise ApiKeyExpired(secret)
        return key
