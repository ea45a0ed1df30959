"""What a person types of a key, read: limits, moments, names and files of secrets.

Pure but for the clock and the file of secrets.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from server.access.keys import Limits
from server.errors import KeyRefused, unusable

_DURATION = re.compile(r"(\d{1,5})([mhd])", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_NO_LIMIT = "none"
_MIN_SECRET_CHARS = 16


def checked_name(name: str) -> str:
    """A key's name as it was given.

    Raises:
        KeyRefused: it is empty, looks like an id, or holds characters that cannot be seen.
    """
    if not name or not name.isprintable() or name != name.strip() or name.startswith("key_"):
        raise KeyRefused(
            f"{name!r} cannot be a key's name: it is empty, begins with key_, or holds characters "
            "that cannot be seen"
        )
    return name


def limits_of(rpm: str | None, tpm: str | None, token_budget: str | None) -> Limits:
    """The limits that these flags set; None and `none` set no limit.

    Raises:
        KeyRefused: one is no whole number above 0.
    """
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


def duration(given: str, flag: str) -> timedelta:
    """A time like 30m, 12h or 90d.

    Raises:
        KeyRefused: it is none; names the flag.
    """
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
        ) from None


def moment(given: str | None) -> int | None:
    """When a key ends, in Unix seconds; None: never.

    Raises:
        KeyRefused: it is neither a day to come nor a time from now.
    """
    if given is None or given == _NO_LIMIT:
        return None
    if _DURATION.fullmatch(given):
        return int(time.time() + duration(given, "--expires").total_seconds())
    day = _day(given, "--expires")
    end = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    if end <= time.time():
        raise KeyRefused(f"--expires {given}: is over")
    return end


def read_secrets(file: Path) -> list[tuple[str, str]]:
    """Names and secrets of a file, in its order.

    Raises:
        KeyRefused: a line is no name and secret; names the line, never the secret.
    """
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
        pairs.append((checked_name(name.strip()), secret))
    if not pairs:
        raise KeyRefused(f"{file}: holds no key")
    return pairs


def first_day(given: str | None) -> str | None:
    """The day from which on usage is summed up, as ISO 8601; None: from the first.

    Raises:
        KeyRefused: it is neither a day nor a time ago.
    """
    if given is None:
        return None
    if _DURATION.fullmatch(given):
        return (datetime.now(UTC) - duration(given, "--since")).date().isoformat()
    return _day(given, "--since").isoformat()
