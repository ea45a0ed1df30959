"""Sets that are gone through in one order, so that an export gives the same bytes every time.

Python orders a set of texts by hashes that change from run to run (PYTHONHASHSEED). Transformers
computes some models' rotary positions once for each member of a set of layer types, and the order
and the names of a graph's nodes follow. Needs the `[torch]` extra.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch

_MODELS = "transformers.models."


class OrderedSet(set[Any]):
    """A set whose members come in the order of how they are written."""

    def __iter__(self) -> Iterator[Any]:
        return iter(sorted(super().__iter__(), key=repr))


@contextlib.contextmanager
def ordered_sets(transformer: torch.nn.Module) -> Iterator[None]:
    """While it lasts, `set` means OrderedSet in the code that transformers has for this model.

    Not for two models at once.
    """
    names = {type(part).__module__ for part in transformer.modules()}
    modules = [sys.modules[name] for name in names if name.startswith(_MODELS)]
    for module in modules:
        vars(module)["set"] = OrderedSet
    try:
        yield
    finally:
        for module in modules:
            del vars(module)["set"]
