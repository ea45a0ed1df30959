"""From what a person writes to a side of a comparison.

all-MiniLM-L6-v2                a model of this disk, computed as the settings say
all-MiniLM-L6-v2@bfloat16       in these numbers
all-MiniLM-L6-v2@cuda:0@float16 on this device, in these numbers
http://127.0.0.1:8000#NAME      a model of a server; the path may end with /v1, as in base_url
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final, get_args
from urllib.parse import urlsplit

from pydantic import ValidationError

from server.catalog.card import Dtype
from server.errors import SettingError, unusable
from server.settings import Settings
from server.spaces.embeddings_client import EmbeddingsClient
from server.spaces.local_model import LocalModel
from server.spaces.remote_model import RemoteModel
from server.spaces.side import Asked, Side

DTYPES: Final[tuple[str, ...]] = get_args(Dtype)
_IN_ENVIRONMENT: Final = "env:"
_IN_FILE: Final = "file:"
_URL = re.compile(r"\w+://")
# A secret may hide before an @ or in a query, and a command line is no place for one.
_SERVER = re.compile(
    r"(?P<base>https?://[^/@?#\s]+(?:/[^?#\s]*)?)(?:#(?P<model>.*))?", re.ASCII | re.IGNORECASE
)
_KEY = re.compile(r"[!-~]+")


def open_side(given: str, settings: Settings, asked: Asked, key: str | None, flag: str) -> Side:
    """The side that is meant; a local model's weights are read when it embeds.

    Args:
        key: where the key of a server is, see `read_key`; None: it wants none.
        flag: the option that says so, for messages.

    Raises:
        SettingError: it is written otherwise, or there is no such model, device or dtype.
        InvalidRequest: the model has no such prompt.
        CardError, ModelFileError, RemoteServerError: the model cannot be used.
    """
    if not _URL.match(given):
        if key is not None:
            raise SettingError(f"{flag}: {given} is a model of this machine, which wants no key")
        return _local(given, settings, asked)
    base_url, model = _server(given)
    secret = None if key is None else read_key(key, flag)
    return RemoteModel(given, EmbeddingsClient(base_url, secret), model, asked)


def read_key(where: str, flag: str) -> str:
    """An API key that lies in an environment variable (`env:NAME`) or in a file (`file:PATH`).

    A key itself is refused: other users of a machine see what stands on its command lines.

    Raises:
        SettingError: it is written otherwise, or there is no key; never says what was given
            where that may be the key.
    """
    if where.startswith(_IN_ENVIRONMENT):
        name = where.removeprefix(_IN_ENVIRONMENT)
        key = os.environ.get(name, "")
    elif where.startswith(_IN_FILE):
        name = where.removeprefix(_IN_FILE)
        try:
            key = Path(name).read_text(encoding="utf-8-sig").strip()
        except (OSError, ValueError) as error:
            raise SettingError(f"{flag}: {unusable(name, error)}") from error
    else:
        raise SettingError(f"{flag}: must be env:NAME of a variable or file:PATH, no key itself")
    if not _KEY.fullmatch(key):
        raise SettingError(
            f"{flag}: {name} holds no key, or more than one, or characters that cannot travel in a "
            "header"
        )
    return key


def _server(given: str) -> tuple[str, str]:
    """The base URL up to /v1, and the model's name."""
    found = _SERVER.fullmatch(given)
    try:
        base = found["base"] if found is not None else ""
        known = base.isascii() and urlsplit(base).port != 0
    except ValueError:  # a port that is none, an address in brackets that is none
        known = False
    if found is None or not known:
        shown = "the server's address" if "@" in given or "?" in given else given
        raise SettingError(
            f"{shown}: must be http://HOST:PORT#MODEL or https://HOST#MODEL, without a user's name, "
            "a password or a query"
        )
    if not found["model"]:
        address = given.removesuffix("#")
        raise SettingError(f"{given}: name the server's model behind the address: {address}#MODEL")
    base = base.rstrip("/")
    return base if base.endswith("/v1") else f"{base}/v1", found["model"]


def _local(given: str, settings: Settings, asked: Asked) -> Side:
    name, *options = given.split("@")
    if not name:
        raise SettingError(f"{given or 'an empty name'}: must begin with a model's name")
    wished: dict[str, str] = {}
    for option in options:
        kind = "dtype" if option in DTYPES else "device"
        if kind in wished:
            raise SettingError(f"{given}: names more than one {kind}")
        wished[kind] = option
    try:
        Settings.model_validate(wished)
    except ValidationError:  # the dtype is one of them all
        raise SettingError(
            f"{given}: {wished['device']!r} is neither a device (cpu, cuda, cuda:N) nor a dtype "
            f"({', '.join(DTYPES)})"
        ) from None
    try:
        return LocalModel(given, name, settings.model_copy(update=wished), asked)
    except SettingError as error:
        raise SettingError(f"{given}: {error.message}") from error
