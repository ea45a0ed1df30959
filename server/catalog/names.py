"""What a model and its files may be called; no name leads out of its folder.

Pure functions; any thread may call.
"""

from __future__ import annotations

import re
from pathlib import Path

CARD_NAME = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?"  # `model` or `organisation/model`


def is_card_name(name: str) -> bool:
    """Whether a card may have this name."""
    return re.fullmatch(CARD_NAME, name) is not None


def stays_below(name: str) -> bool:
    """Whether this path leads to something inside the folder that it starts from."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts
