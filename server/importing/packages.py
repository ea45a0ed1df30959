"""Which optional packages this Python has; none is imported to find out."""

from __future__ import annotations

import importlib.util


def is_installed(package: str) -> bool:
    """Whether this Python has the package."""
    return importlib.util.find_spec(package) is not None
