"""The commands `keys ...` and `usage`."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from server.access.keys import DEFAULT_SCOPES, Key, Limits, Scope
from server.commands.flags import with_flags
from server.errors import KeyRefused, unusable
from server.settings import Settings

if TYPE_CHECKING:
    from server.access.database import Database
    from server.access.key_store import KeyStore

keys_app = typer.Typer(
    help="API keys with limits, kept in a database.", no_args_is_help=True, rich_markup_mode=None
)

_DURATION = re.compile(r"(\d{1,5})([mhd])", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_NO_LIMIT = "none"
_MIN_SECRET_CHARS = 16

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
    limits = _limits(rpm, tpm, token_budget)
    with _store(settings, make=True) as store:
        key, secret = store.create(
            _checked_name(name),
            scopes=scope or DEFAULT_SCOPES,
            models=model or (),
            limits=limits,
            expires_at=_moment(expires),
        )
    _show_secret(key, secret, as_json=json)


@keys_app.command("list")
@with_flags("database_url", "data_dir")
def list_keys(settings: Settings, json: AsJson = False) -> None:
    """Show all keys, without their secrets."""
    with _store(settings) as store:
        keys = store.all()
    if json:
        _print_json([_fields(key) for key in keys])
        return
    _print_table(
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
    found = _limits(rpm, tpm, token_budget)
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
        columns["expires_at"] = _moment(expires)
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
    grace_s = int(_duration(grace, "--grace").total_seconds()) if grace else 0
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
    limits, expires_at = _limits(rpm, tpm, token_budget), _moment(expires)
    pairs = _read_secrets(file)
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
        _print_json({"imported": [_fields(key) for key in imported], "known": known})
    else:
        print(f"{len(imported)} keys imported, {known} were known")


@with_flags("database_url", "data_dir")
def usage(
    settings: Settings,
    by: Annotated[str, typer.Option(help="Sum up by key, model, user or day.")] = "key",
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="First day (2026-11-01, UTC), or 7d ago.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Count this key only, by name or id.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Show only so many rows.")] = None,
    json: AsJson = False,
) -> None:
    """Show requests and tokens by key, model, user or day."""
    from server.access.usage_report import By, usage_by

    if by not in set(By):
        raise KeyRefused(f"--by {by}: must be one of {', '.join(By)}")
    with _database(settings) as database:
        sums = usage_by(database, By(by), since=_first_day(since), key=key)[:top]
    if json:
        _print_json(
            [{by: row.name, "requests": row.requests, "tokens": row.tokens} for row in sums]
        )
    else:
        _print_table(
            (by, "requests", "tokens"),
            [(row.name or "-", str(row.requests), str(row.tokens)) for row in sums],
        )


@contextmanager
def _database(settings: Settings, *, make: bool = False) -> Iterator[Database]:
    from server.access.database import Database

    if settings.database_url is None and not make:
        settings.check_data_dir()
    database = Database(settings.database())
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _store(settings: Settings, *, make: bool = False) -> Iterator[KeyStore]:
    """The keys.

    Args:
        make: make the data folder if it is missing; a command that only looks must not.
    """
    from server.access.key_store import KeyStore

    with _database(settings, make=make) as database:
        yield KeyStore(database)


def _checked_name(name: str) -> str:
    if not name or not name.isprintable() or name != name.strip() or name.startswith("key_"):
        raise KeyRefused(
            f"{name!r} cannot be a key's name: it is empty, begins with key_, or holds characters "
            "that cannot be seen"
        )
    return name


def _limits(rpm: str | None, tpm: str | None, token_budget: str | None) -> Limits:
    return Limits(
        requests_per_minute=_number(rpm, "--rpm"),
        tokens_per_minute=_number(tpm, "--tpm"),
        token_budget=_number(token_budget, "--token-budget"),
    )


def _number(given: str | None, flag: str) -> int | None:
    if given is None or given == _NO_LIMIT:
        return None
    if _NUMBER.fullmatch(given) is None or int(given) == 0:
        raise KeyRefused(
            f"{flag} {given[:20]}: must be a whole number above 0 of at most 15 digits, or none"
        )
    return int(given)


def _duration(given: str, flag: str) -> timedelta:
    found = _DURATION.fullmatch(given)
    if found is None:
        raise KeyRefused(f"{flag} {given}: must be a time like 30m, 12h or 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _day(given: str, flag: str) -> date:
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise KeyRefused(
            f"{flag} {given}: must be a day like 2027-01-31, or a time like 90d"
        ) from (None)


def _moment(given: str | None) -> int | None:
    """When a key ends, in Unix seconds."""
    if given is None or given == _NO_LIMIT:
        return None
    if _DURATION.fullmatch(given):
        return int(time.time() + _duration(given, "--expires").total_seconds())
    day = _day(given, "--expires")
    moment = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    if moment <= time.time():
        raise KeyRefused(f"--expires {given}: is over")
    return moment


def _first_day(given: str | None) -> str | None:
    if given is None:
        return None
    if _DURATION.fullmatch(given):
        return (datetime.now(UTC) - _duration(given, "--since")).date().isoformat()
    return _day(given, "--since").isoformat()


def _read_secrets(file: Path) -> list[tuple[str, str]]:
    """Names and secrets of a file; messages tell lines, never secrets."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise KeyRefused(unusable(str(file), error)) from error
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, secret = line.strip().rpartition(" ")
        where = f"{file}, line {number}"
        if not name or "#" in line or any(word.startswith("sk-") for word in name.split()):
            raise KeyRefused(f"{where}: must be NAME SECRET and nothing else")
        if len(secret) < _MIN_SECRET_CHARS or not secret.isascii() or not secret.isprintable():
            raise KeyRefused(
                f"{where}: the secret has fewer than {_MIN_SECRET_CHARS} characters, or some that "
                "cannot travel in a header"
            )
        if name.strip() in (known for known, _ in pairs) or secret in (s for _, s in pairs):
            raise KeyRefused(f"{where}: the name or the secret stands above already")
        pairs.append((_checked_name(name.strip()), secret))
    if not pairs:
        raise KeyRefused(f"{file}: holds no key")
    return pairs


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
        _print_json(_fields(key))
        return
    for name, value in _fields(key).items():
        shown = ", ".join(value) if isinstance(value, list) else "-" if value is None else value
        print(f"{name}: {shown}")


def _show_secret(key: Key, secret: str, *, as_json: bool) -> None:
    if as_json:
        _print_json({"id": key.id, "secret": secret, **_fields(key)})
        return
    print(f"key {key.name} ({key.id}); its secret is shown only now:\n{secret}")


def _print_json(value: object) -> None:
    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _print_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*titles)
    for row in rows:
        # Users' names come from clients: neither markup nor what steers a terminal may act.
        table.add_row(
            *(Text("".join(c if c.isprintable() else "\ufffd" for c in cell)) for cell in row)
        )
    # A pipe has no width; there no cell may be cut.
    (Console() if sys.stdout.isatty() else Console(width=10_000)).print(table)
