"""Which int8 recipe a model gets: the fastest that keeps enough of its vectors.

Fastest by a count of multiplications, not by a clock: the recipe is part of the fingerprint, so two
sites that import one model must choose alike, however busy their machines are. Pure; any thread may
call.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, get_args

from server.catalog.int8_recipe import GroupSize, Int8Recipe, StoredMatrix
from server.inference import least_cosines

# CPU time of a product in int8, by group size, against bfloat16: medians over 384 x 1,536 to 1,024 x
# 4,096 both ways, times 16 and 256 tokens, on one core of an AMD EPYC (family 26). They stay as they
# are on every machine, since they decide recipes, and these fingerprints.
_TIME: Final[dict[GroupSize, float]] = {128: 0.65, 64: 0.71, 32: 0.83}
# Another processor rounds otherwise: the floor of a start leaves as much again as was lost here.
_MARGIN: Final = 2
_LAYER = re.compile(r"[./](\d+)[./]")  # the first number that is a part of a name of its own


@dataclass(frozen=True, slots=True)
class Kept:
    """What vectors keep of those in float32, or must keep."""

    mean_cosine: float
    min_cosine: float
    neighbours_kept: float  # share (0 to 1) of ten nearest neighbours

    def is_at_least(self, floors: Kept) -> bool:
        """Whether each figure is; never with NaN."""
        return (
            self.mean_cosine >= floors.mean_cosine
            and self.min_cosine >= floors.min_cosine
            and self.neighbours_kept >= floors.neighbours_kept
        )

    @property
    def is_finite(self) -> bool:
        """Whether each figure is: vectors with NaN have no cosine."""
        return all(map(math.isfinite, (self.mean_cosine, self.min_cosine, self.neighbours_kept)))

    def __str__(self) -> str:
        return (
            f"mean cosine {self.mean_cosine:.5f}, least {self.min_cosine:.5f}, "
            f"{self.neighbours_kept:.1%} of the ten nearest neighbours kept"
        )


# What a recipe must keep on the texts of an import. See docs/how-to/cpu-precision.md for what that
# means in STS-B and in neighbours among other texts.
FLOORS: Final = Kept(mean_cosine=0.998, min_cosine=0.99, neighbours_kept=0.97)
NOTHING: Final = Kept(mean_cosine=math.nan, min_cosine=math.nan, neighbours_kept=0.0)  # no vectors


@dataclass(frozen=True, slots=True)
class Tried:
    """A recipe, what it keeps, and whether that is enough."""

    recipe: Int8Recipe
    kept: Kept


def choose(recipes: Iterable[Int8Recipe], measure: Callable[[Int8Recipe], Kept]) -> Tried | None:
    """The first recipe that keeps enough, with its floor for a start.

    Args:
        recipes: the fastest first.
        measure: asked no further than needed, since it computes all texts.

    Returns:
        Where none keeps enough, the one that keeps most neighbours, not `offered`, one with finite
        figures if there is one; None: there is no recipe.
    """
    tried = []
    for recipe in recipes:
        kept = measure(recipe)
        if kept.is_at_least(FLOORS):
            return Tried(recipe.model_copy(update={"min_cosine": _floor(kept.min_cosine)}), kept)
        tried.append(Tried(recipe.model_copy(update={"offered": False}), kept))
    return max(tried, key=lambda one: (one.kept.is_finite, one.kept.neighbours_kept), default=None)


def list_recipes(matrices: Sequence[StoredMatrix]) -> tuple[Int8Recipe, ...]:
    """Every group size with every set of matrices to keep, without repetitions, the fastest first.

    Kept in bfloat16: none; the second of each feed-forward, whose inputs differ most in size; the
    first and the last layer; both. Tables of embeddings are not multiplied and stay as they are.
    """
    found: dict[frozenset[StoredMatrix], dict[GroupSize, Int8Recipe]] = {}
    for keep in _keeps(matrices):
        for group_size in get_args(GroupSize):
            recipe = Int8Recipe(group_size=group_size, keep=keep)
            in_int8 = frozenset(one for one in matrices if recipe.makes_int8(one))
            if in_int8:
                found.setdefault(in_int8, {}).setdefault(group_size, recipe)
    recipes = [recipe for by_size in found.values() for recipe in by_size.values()]
    return tuple(sorted(recipes, key=lambda one: relative_time(one, matrices)))


def relative_time(recipe: Int8Recipe, matrices: Iterable[StoredMatrix]) -> float:
    """Time of all products against all of them in bfloat16, by _TIME."""
    took = total = 0.0
    for matrix in matrices:
        took += matrix.size * (_TIME[recipe.group_size] if recipe.makes_int8(matrix) else 1.0)
        total += matrix.size
    return took / total


def _keeps(matrices: Sequence[StoredMatrix]) -> Iterator[tuple[str, ...]]:
    yield ()
    seconds = _second_of_each_feed_forward(matrices)
    ends = _first_and_last_layer(matrices)
    yield from dict.fromkeys(one for one in (seconds, ends, (*seconds, *ends)) if one)


def _second_of_each_feed_forward(matrices: Sequence[StoredMatrix]) -> tuple[str, ...]:
    """Those of the layers with the most inputs, more than they have outputs."""
    wide = [one for one in matrices if _layer(one) and one.inputs > one.outputs]
    most = max((one.inputs for one in wide), default=0)
    return tuple(dict.fromkeys(_pattern(one) for one in wide if one.inputs == most))


def _first_and_last_layer(matrices: Sequence[StoredMatrix]) -> tuple[str, ...]:
    layers = [found for one in matrices if (found := _layer(one))]
    numbers = {int(found[1]) for found in layers}
    if len(numbers) < 3:  # nothing, or nearly nothing, would be left
        return ()
    ends = {min(numbers), max(numbers)}
    starts = dict.fromkeys(found.string[: found.end()] for found in layers if int(found[1]) in ends)
    return tuple(f"{glob.escape(start)}*" for start in starts)


def _layer(matrix: StoredMatrix) -> re.Match[str] | None:
    """Where its name, else that of its product, has the number of its layer."""
    return _LAYER.search(matrix.name) or _LAYER.search(matrix.product)


def _pattern(matrix: StoredMatrix) -> str:
    """Its name in any layer: a digit for each digit, since `*` also stands for dots."""
    found = _layer(matrix)
    assert found is not None, "asked of matrices in layers only"
    before, after = found.string[: found.start(1)], found.string[found.end(1) :]
    return f"{glob.escape(before)}{'[0-9]' * len(found[1])}{glob.escape(after)}"


def _floor(min_cosine: float) -> float:
    """Never nearer than what is asked of bfloat16, in which the rest is computed."""
    wide = round(1 - _MARGIN * (1 - min_cosine), 4)
    return min(wide, least_cosines.START_ON_CPU["bfloat16"])
