"""What an import takes for true of a model, and who says so: a file, the table, or a flag.

Every fact that decides a vector is one line of the import's output, so that a person can hold it
against the model's card. Pure; any thread may call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Told:
    """One fact of a model.

    Args:
        source: the file, from the model's folder; the table of families; or the flag.
        doubt: why it may be wrong all the same; empty if nothing speaks against it.
    """

    fact: str
    value: str
    source: str
    doubt: str = ""


def tell(facts: Iterable[Told], report: Callable[[str], None]) -> None:
    """Print each as `fact: value (source)`, and a warning behind one that is in doubt."""
    for told in facts:
        report(f"{told.fact}: {told.value} ({told.source})")
        if told.doubt:
            report(f"warning: {told.fact}: {told.doubt}")


def yes_or_no(value: bool) -> str:
    """How a fact that holds or does not is written."""
    return "yes" if value else "no"


def quoted(text: str) -> str:
    """A text on one line, in double quotes."""
    return json.dumps(text, ensure_ascii=False)
