"""What an API key is: its secret, its scopes, its limits. Pure; knows no database and no HTTP."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import secrets
from collections.abc import Iterable, Mapping

from server.errors import MissingApiKey, ModelNotAllowed, ScopeMissing

SECRET_PREFIX = "sk-"
_SECRET_BYTES = 32
_SHOWN_CHARS = len(SECRET_PREFIX) + 4
_ID_BYTES = 8


class Scope(enum.StrEnum):
    """What a key may be used for."""

    EMBEDDINGS = "embeddings"
    MODELS = "models"
    ADMIN = "admin"  # the metrics


DEFAULT_SCOPES = frozenset({Scope.EMBEDDINGS, Scope.MODELS})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a key may do; None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    token_budget: int | None = None  # tokens, ever

    @property
    def by_the_minute(self) -> bool:
        """Whether there is any that starts anew each minute."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None


NO_LIMITS = Limits()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key without its secret. Times are Unix seconds."""

    id: str  # also its name in the fair queue and in the usage ledger
    name: str
    shown: str = ""  # the secret's first characters, to recognise it by
    scopes: frozenset[Scope] = frozenset(Scope)
    models: frozenset[str] = frozenset()  # names or aliases; empty: all
    limits: Limits = NO_LIMITS
    created_at: int = 0
    expires_at: int | None = None
    revoked_at: int | None = None
    spent_tokens: int = 0  # of the budget, with what servers hold in advance

    def check_scope(self, scope: Scope) -> None:
        """Raise ScopeMissing unless the key may be used for this."""
        if scope not in self.scopes:
            raise ScopeMissing(scope)

    def may_use(self, model: str, aliases: Iterable[str]) -> bool:
        """Whether the key may use the model with this name and these aliases."""
        return not self.models or not self.models.isdisjoint((model, *aliases))

    def check_model(self, model: str, aliases: Iterable[str]) -> None:
        """Raise ModelNotAllowed unless `may_use`."""
        if not self.may_use(model, aliases):
            raise ModelNotAllowed(model)


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """All stored keys at one time, and which digests open them until when (None: for good)."""

    version: str
    keys: tuple[Key, ...]
    digests: Mapping[str, tuple[Key, int | None]]


# Whoever comes while no key is asked for.
ANONYMOUS = Key(id="anonymous", name="anonymous")


def new_secret() -> str:
    """256 random bits behind the prefix that OpenAI's keys have."""
    return SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def new_id() -> str:
    """A name for a key that never changes."""
    return f"key_{secrets.token_hex(_ID_BYTES)}"


def digest(secret: str) -> str:
    """The SHA-256 of a secret, in hexadecimal: all that is ever stored of it."""
    return hashlib.sha256(secret.encode()).hexdigest()


def shown(secret: str) -> str:
    """The first characters of a long secret; nothing of a short one, which they would give away."""
    return secret[:_SHOWN_CHARS] if len(secret) >= _SECRET_BYTES else ""


def static_key(secret: str) -> Key:
    """A key from a flag, the environment or a file: everything allowed, no limits."""
    return Key(id=f"static-{digest(secret)[:16]}", name="given at start", shown=shown(secret))


def read_secret(authorization: str | None) -> str:
    """The secret in an Authorization header `Bearer SECRET`, the scheme in any case.

    Raises:
        MissingApiKey: the header is absent or of another form.
    """
    scheme, _, secret = (authorization or "").strip().partition(" ")
    secret = secret.strip()
    if scheme.lower() != "bearer" or not secret:
        raise MissingApiKey
    return secret
