"""Who says how a folder's vectors are pooled and normalised: its modules.json, the table, a person.

Nothing is assumed: what none of them says is refused, with the flags that say it. Pure functions of
files; any thread may call.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from server.catalog.card import PoolingMode
from server.errors import ImportRefused
from server.importing.families import Family, find_family
from server.importing.head import MODULES_FILE, Head, read_head, read_pooling
from server.importing.json_files import is_there
from server.importing.told import Told, yes_or_no

# Where sentence-transformers keeps the pooling; it reads it only if modules.json names it.
POOLING_FILE = "1_Pooling/config.json"


def choose_head(
    path: Path,
    *,
    names: tuple[str, ...] = (),
    made_from: str = "",
    pooling: PoolingMode | None = None,
    normalize: bool | None = None,
) -> Head:
    """By modules.json; else by the person, and what the person does not say by the table.

    Args:
        names: the model's own, by which the table may know it.
        made_from: the model that its config names, its own or the one that it was trained from;
            never decides.
        pooling, normalize: the person's flags.

    Raises:
        ImportRefused: pooling or normalisation would be a guess, or the model has other parts
            that modules.json would have named.
    """
    family = find_family(names)
    head = read_head(path)
    if head is None:
        _check_no_dense_layers(path, family)
        return _say_head(path, family, made_from, pooling, normalize)
    if pooling is not None or normalize is not None:
        raise ImportRefused(
            f"{path / MODULES_FILE} says pooling and normalisation; --pooling and --normalize "
            "are for folders without it"
        )
    return head if family is None else _doubt(head, family)


def _doubt(head: Head, family: Family) -> Head:
    """The folder's own head; where the table has another, one of them is wrong, and that is told."""
    published = {"pooling": _written(family.pooling), "normalize": _written(family.normalize)}
    told = []
    for one in head.told:
        theirs = published.get(one.fact, "")
        if theirs not in ("", one.value):
            doubt = f"the folder's own word holds, but the {family.cited}, has {theirs}"
            told.append(replace(one, doubt=doubt))
        else:
            told.append(one)
    return replace(head, told=tuple(told))


def _check_no_dense_layers(path: Path, family: Family | None) -> None:
    found = sorted(folder.name for folder in path.glob("[0-9]*_Dense"))
    if family is not None and family.dense:
        found = [f"models of {family.source} have them"]
    if found:
        raise ImportRefused(
            f"{path}: no {MODULES_FILE}, without which its dense layers are lost "
            f"({', '.join(found)}); copy the publisher's folder as a whole"
        )


def _say_head(
    path: Path,
    family: Family | None,
    made_from: str,
    pooling: PoolingMode | None,
    normalize: bool | None,
) -> Head:
    by_table = (family.pooling, family.normalize) if family else (None, None)
    chosen = pooling or by_table[0]
    is_normalized = by_table[1] if normalize is None else normalize
    if chosen is None or is_normalized is None:
        flags = [] if chosen else ["--pooling mean, cls or last_token"]
        flags += [] if is_normalized is not None else ["--normalize or --no-normalize"]
        raise ImportRefused(
            f"{path}: no {MODULES_FILE} says how token vectors become one vector, nor does the "
            f"table of families for this name; say {' and '.join(flags)}, as the model's card "
            f"does{_hint(made_from)}"
        )
    doubt = ""
    if is_there(path / POOLING_FILE) and (unnamed := read_pooling(path / POOLING_FILE)) != chosen:
        doubt = f"{POOLING_FILE} says {unnamed}, but no {MODULES_FILE} names it"
    told = (
        Told("pooling", chosen, _source("--pooling", pooling, by_table[0], family), doubt),
        Told("dense layers", "none", f"no {MODULES_FILE} names any"),
        Told(
            "normalize",
            _written(is_normalized),
            _source(f"--{'' if is_normalized else 'no-'}normalize", normalize, by_table[1], family),
        ),
    )
    return Head(chosen, (), is_normalized, told)


def _source(
    flag: str, said: str | bool | None, published: str | bool | None, family: Family | None
) -> str:
    """Who decided a fact; where a person did otherwise than the table, both."""
    if family is None or published is None:
        return flag
    if said is None:
        return family.cited
    return flag if said == published else f"{flag}; the {family.cited}, has {_written(published)}"


def _hint(made_from: str) -> str:
    """What is published of the model that a folder says it was made from, if anything is."""
    base = find_family((made_from,))
    if base is None or base.pooling is None or base.normalize is None:
        return ""
    flag = "--normalize" if base.normalize else "--no-normalize"
    return (
        f" (config.json says that it was made from {made_from}, for which --pooling {base.pooling} "
        f"{flag} would be right)"
    )


def _written(fact: str | bool | None) -> str:
    """As a line of the import's output has it; empty if it is not known."""
    if isinstance(fact, bool):
        return yes_or_no(fact)
    return fact or ""
