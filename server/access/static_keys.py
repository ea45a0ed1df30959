"""API keys that are given at start: everybody who has one may do everything.

Knows nothing of models. Any thread may call.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from server.errors import IncorrectApiKey, MissingApiKey

ANONYMOUS = "anonymous"
_NAME_DIGITS = 16


class StaticKeys:
    """A set of secrets, kept only as SHA-256 digests; an empty set lets everybody in."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(secret.encode()).digest() for secret in secrets]

    def check(self, authorization: str | None) -> str:
        """Accept an Authorization header `Bearer KEY` (scheme in any case) or refuse it.

        Returns:
            A name for the key that tells nothing of it; ANONYMOUS if none is asked for.

        Raises:
            MissingApiKey: the header is absent or of another form.
            IncorrectApiKey: the key is unknown.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, secret = (authorization or "").strip().partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise MissingApiKey
        digest = hashlib.sha256(secret.encode()).digest()
        # Every digest is compared, so that the time taken tells nothing.
        known = [hmac.compare_digest(digest, other) for other in self._digests]
        if not any(known):
            raise IncorrectApiKey(secret)
        return digest.hex()[:_NAME_DIGITS]
