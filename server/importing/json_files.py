"""JSON files of a folder that nobody vouches for. Pure functions of files; any thread may call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.errors import ImportRefused

MAX_JSON_BYTES = 32 * 1024 * 1024  # as objects a file can take twenty times its bytes
MAX_TOKENIZER_BYTES = 256 * 1024 * 1024  # of tokenizer.json, of which Gemma's has 34 MB


def read_json(path: Path) -> dict[str, Any]:
    """The object in this file.

    Raises:
        ImportRefused: the file is missing or broken.
    """
    content = read_any_json(path)
    if not isinstance(content, dict):
        raise ImportRefused(f"{path}: not a JSON object")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The object in this file, or an empty one; see `is_there` and `read_json`."""
    return read_json(path) if is_there(path) else {}


def read_any_json(path: Path) -> Any:
    """Whatever this file holds; see `read_json`."""
    try:
        if path.exists() and not path.is_file():  # a named pipe would never end
            raise ImportRefused(f"{path}: not a file")
        check_json_size(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return content
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path}: not JSON: {error}") from None


def check_json_size(path: Path, most: int = MAX_JSON_BYTES) -> None:
    """Refuse a file that would take all memory.

    Raises:
        ImportRefused: it is too large.
        OSError: it is not there.
    """
    size = path.stat().st_size
    if size > most:
        raise ImportRefused(f"{path}: has {size:,} bytes, more than the {most:,} allowed")


def is_there(path: Path) -> bool:
    """Also a link whose target was not copied: taken for absent, it would change the vectors."""
    return path.exists() or path.is_symlink()
