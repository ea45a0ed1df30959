"""The commands `embedding-server keys`: create, list, show, update, revoke, rotate, import."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.access.keys import DEFAULT_SCOPES, Key, Scope
from server.commands.flags import with_flags
from server.commands.key_database import open_database
from server.commands.key_values import checked_name, duration, limits_of, moment, read_secrets
from server.commands.printing import print_json, print_plain_table
from server.errors import KeyRefused
from server.settings import Settings

if TYPE_CHECKING:
    from server.access.key_store import KeyStore

keys_app = typer.Typer(
    help="API keys with limits, kept in a database.", no_args_is_help=True, rich_markup_mode=None
)


KeyName = Annotated[str, typer.Argument(metavar="KEY", help="Name or id of the key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]
Scopes = Annotated[
    list[Scope] | None,
    typer.Option("--scope", help="What it may be used for (repeatable; default: embeddings and "
                 "models; admin: the metrics)."),
]  # fmt: skip
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model it may use (repeatable; default: all)."),
]
Rpm = Annotated[str | None, typer.Option(metavar="N", help="Requests a minute, or none.")]
Tpm = Annotated[str | None, typer.Option(metavar="N", help="Tokens a minute, or none.")]
TokenBudget = Annotated[str | None, typer.Option(metavar="N", help="Tokens in all, or none.")]
Expires = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="Day it ends (2027-01-31, UTC), or 90d, 12h, 30m from now."),
]


@keys_app.command("create")
@with_flags("database_url", "data_dir")
def create(
    settings: Settings,
    name: Annotated[str, typer.Option(help="Whose key it is; must be new.")],
    scope: Scopes = None,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    token_budget: TokenBudget = None,
    expires: Expires = None,
    json: AsJson = False,
) -> None:
    """Make a key and show its secret, this once."""
    limits = limits_of(rpm, tpm, token_budget)
    with _store(settings, make=True) as store:
        key, secret = store.create(
            checked_name(name),
            scopes=scope or DEFAULT_SCOPES,
            models=model or (),
            limits=limits,
            expires_at=moment(expires),
        )
    _show_secret(key, secret, as_json=json)


@keys_app.command("list")
@with_flags("database_url", "data_dir")
def list_keys(settings: Settings, json: AsJson = False) -> None:
    """Show all keys, without their secrets."""
    with _store(settings) as store:
        keys = store.all()
    if json:
        print_json([_fields(key) for key in keys])
        return
    print_plain_table(
        ("id", "name", "secret", "state", "scopes", "models", "rpm", "tpm", "budget", "spent"),
        [
            (
                key.id,
                key.name,
                f"{key.shown}…",
                _state(key),
                ", ".join(sorted(key.scopes)),
                ", ".join(sorted(key.models)) or "all",
                *map(_or_dash, dataclasses.astuple(key.limits)),
                f"{key.spent_tokens}" if key.limits.token_budget is not None else "-",
            )
            for key in keys
        ],
    )


@keys_app.command("show")
@with_flags("database_url", "data_dir")
def show(settings: Settings, key: KeyName, json: AsJson = False) -> None:
    """Show one key."""
    with _store(settings) as store:
        _show(store.find(key), as_json=json)


@keys_app.command("update")
@with_flags("database_url", "data_dir")
def change(
    settings: Settings,
    key: KeyName,
    scope: Scopes = None,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    token_budget: TokenBudget = None,
    expires: Expires = None,
    json: AsJson = False,
) -> None:
    """Change what a key may do; what is not named stays. `--model all` allows every model."""
    found = limits_of(rpm, tpm, token_budget)
    columns: dict[str, Any] = {
        name: getattr(found, name)
        for name, given in (
            ("requests_per_minute", rpm),
            ("tokens_per_minute", tpm),
            ("token_budget", token_budget),
        )
        if given is not None
    }
    if scope:
        columns["scopes"] = scope
    if model:
        columns["models"] = [] if model == ["all"] else model
    if expires is not None:
        columns["expires_at"] = moment(expires)
    if not columns:
        raise KeyRefused("name what to change, for example --rpm 60")
    with _store(settings) as store:
        _show(store.change(key, **columns), as_json=json)


@keys_app.command("revoke")
@with_flags("database_url", "data_dir")
def revoke(settings: Settings, key: KeyName, json: AsJson = False) -> None:
    """End a key for good, on every server within seconds."""
    with _store(settings) as store:
        _show(store.revoke(key), as_json=json)


@keys_app.command("rotate")
@with_flags("database_url", "data_dir")
def rotate(
    settings: Settings,
    key: KeyName,
    grace: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="How long the old secret stays valid: 30m, 24h, 7d."),
    ] = None,
    json: AsJson = False,
) -> None:
    """Give a key a new secret and show it, this once."""
    grace_s = int(duration(grace, "--grace").total_seconds()) if grace else 0
    with _store(settings) as store:
        renewed, secret = store.rotate(key, grace_s=grace_s)
    _show_secret(renewed, secret, as_json=json)


@keys_app.command("import")
@with_flags("database_url", "data_dir")
def import_keys(
    settings: Settings,
    file: Annotated[
        Path, typer.Argument(help="One `NAME SECRET` a line; lines that begin with # are comments.")
    ],
    scope: Scopes = None,
    model: Models = None,
    rpm: Rpm = None,
    tpm: Tpm = None,
    token_budget: TokenBudget = None,
    expires: Expires = None,
    json: AsJson = False,
) -> None:
    """Take over existing secrets, all with the same limits; known ones are left as they are."""
    limits, expires_at = limits_of(rpm, tpm, token_budget), moment(expires)
    pairs = read_secrets(file)
    imported: list[Key] = []
    with _store(settings, make=True) as store:
        taken = {key.name for key in store.all()}
        new = [(name, secret) for name, secret in pairs if not store.knows(secret)]
        for name, _ in new:
            if name in taken:
                raise KeyRefused(f"{file}: there is a key named {name} already; nothing imported")
        for name, secret in new:
            key, _ = store.create(
                name,
                secret=secret,
                scopes=scope or DEFAULT_SCOPES,
                models=model or (),
                limits=limits,
                expires_at=expires_at,
            )
            imported.append(key)
    known = len(pairs) - len(imported)
    if json:
        print_json({"imported": [_fields(key) for key in imported], "known": known})
    else:
        print(f"{len(imported)} keys imported, {known} were known")


@contextmanager
def _store(settings: Settings, *, make: bool = False) -> Iterator[KeyStore]:
    """The keys.

    Args:
        make: make the data folder if it is missing; a command that only looks must not.
    """
    from server.access.key_store import KeyStore

    with open_database(settings, make=make) as database:
        yield KeyStore(database)


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and key.expires_at <= time.time():
        return "expired"
    return "valid" if key.expires_at is None else f"until {_iso(key.expires_at)}"


def _iso(unix_s: int | None) -> str | None:
    return None if unix_s is None else datetime.fromtimestamp(unix_s, UTC).isoformat()


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _fields(key: Key) -> dict[str, Any]:
    """A key as JSON, its limits named as the flags are."""
    return {
        "id": key.id,
        "name": key.name,
        "shown": key.shown,
        "state": _state(key).split()[0],
        "scopes": sorted(key.scopes),
        "models": sorted(key.models) or None,
        "rpm": key.limits.requests_per_minute,
        "tpm": key.limits.tokens_per_minute,
        "token_budget": key.limits.token_budget,
        "spent_tokens": key.spent_tokens,
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _show(key: Key, *, as_json: bool) -> None:
    if as_json:
        print_json(_fields(key))
        return
    for name, value in _fields(key).items():
        shown = ", ".join(value) if isinstance(value, list) else "-" if value is None else value
        print(f"{name}: {shown}")


def _show_secret(key: Key, secret: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"id": key.id, "secret": secret, **_fields(key)})
        return
    print(f"key {key.name} ({key.id}); its secret is shown only now:\n{secret}")
