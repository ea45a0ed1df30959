"""Tokenizers that are read without complaint, and whose library panics."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Precompiled

# Read by the byte: it has no place for the first byte of characters beyond U+FFFF.
_PLACES = 200
_ALL_BUT_EMOJI = struct.pack(f"<I{_PLACES}I", 4 * _PLACES, *[0] * _PLACES) + b"\0"
PANICS: dict[str, dict[str, Any]] = {  # what stands behind the normalizer
    "when it is read": {"type": "Precompiled", "precompiled_charsmap": ""},
    "at every text": {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(struct.pack("<II", 4, 0)).decode(),
    },
    "at emoji": {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(_ALL_BUT_EMOJI).decode(),
    },
}


def panic() -> None:
    """Have a library panic."""
    tokenizer = Tokenizer(WordLevel({"a": 0}, unk_token="a"))
    tokenizer.normalizer = Precompiled(struct.pack("<II", 4, 0))
    tokenizer.encode("a")


def let_panic(tokenizer: Path, when: str) -> Path:
    """Change a tokenizer.json so that the library panics then."""
    content = json.loads(tokenizer.read_bytes())
    steps = [content["normalizer"], PANICS[when]]
    normalizer = {"type": "Sequence", "normalizers": [step for step in steps if step]}
    tokenizer.write_text(json.dumps(content | {"normalizer": normalizer}))
    return tokenizer
