"""What a config.json says of the arithmetic; what a family's formulas do not know is refused.

Pure functions; any thread may call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic
from server.importing.witness import formulas

Activation = Callable[[NDArray[np.float32]], NDArray[np.float32]]

_LARGEST = sys.float_info.max
# By the names of config.json.
_ACTIVATIONS: dict[str, Activation] = {
    "gelu": formulas.gelu,
    "gelu_fast": formulas.gelu_tanh,
    "gelu_new": formulas.gelu_tanh,
    "gelu_python": formulas.gelu,
    "gelu_pytorch_tanh": formulas.gelu_tanh,
    "relu": formulas.relu,
    "silu": formulas.silu,
    "swish": formulas.silu,
    "tanh": formulas.tanh,
}


def count(config: Mapping[str, Any], key: str, least: int = 1) -> int:
    """A whole number that the config has to say, positive unless it may be as small as `least`.

    Raises:
        UnknownArithmetic: it does not.
    """
    found = config.get(key)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        positive = "a positive" if least == 1 else "a"
        raise UnknownArithmetic(f"config.json: {key} is {found!r}, not {positive} whole number")
    return found


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive number; `default` is the published one, for configs that leave it out.

    Args:
        default: None: they may not leave it out.

    Raises:
        UnknownArithmetic: it is none.
    """
    found = config.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found <= _LARGEST:
        raise UnknownArithmetic(f"config.json: {key} is {found!r}, not a positive number")
    return float(found)


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Whether a setting is on; None counts as absent.

    Raises:
        UnknownArithmetic: it is neither on nor off.
    """
    found = config.get(key)
    if found is not None and not isinstance(found, bool):
        raise UnknownArithmetic(f"config.json: {key} is {found!r}, neither true nor false")
    return default if found is None else found


def require(config: Mapping[str, Any], key: str, *known: object) -> None:
    """See that a setting is absent or one that the formulas know.

    Raises:
        UnknownArithmetic: it is another one.
    """
    if key in config and config[key] not in known:
        told = " or ".join(repr(one) for one in known)
        raise UnknownArithmetic(
            f"config.json: {key} is {config[key]!r}; the witness knows only {told}"
        )


def activation(config: Mapping[str, Any], key: str, default: str | None = None) -> Activation:
    """The function that a setting names; `default` as for `number`.

    Raises:
        UnknownArithmetic: it is unknown here.
    """
    name = config.get(key, default)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise UnknownArithmetic(
            f"config.json: {key} is {name!r}; the witness knows only {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]
