"""The fastest int8 recipe that keeps enough is chosen, alike on every machine."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from server.catalog.int8_recipe import Int8Recipe, StoredMatrix
from server.importing.int8_choice import (
    FLOORS,
    NOTHING,
    Kept,
    choose,
    list_recipes,
    relative_time,
)
from tests.conftest import REPOSITORY

ATTENTION = ("query", "key", "value", "output.dense")


def bert(layers: int, hidden: int = 384) -> list[StoredMatrix]:
    """As a graph names the matrices of a BERT that was made here, a pooler behind them."""
    found: list[StoredMatrix] = []
    for layer in range(layers):
        start = f"transformer.encoder.layer.{layer}"
        for part in ATTENTION:
            name = f"{start}.attention.{part}.weight"
            found.append(StoredMatrix(name, f"node_{len(found)}", hidden, hidden))
        up = StoredMatrix(f"{start}.intermediate.dense.weight", "up", hidden, 4 * hidden)
        found += [up, StoredMatrix(f"{start}.output.dense.weight", "down", 4 * hidden, hidden)]
    return [*found, StoredMatrix("pooler.dense.weight", "last", hidden, hidden)]


def published(layers: int) -> list[StoredMatrix]:
    """The same matrices as other exporters name them: only nodes tell of layers."""
    return [
        StoredMatrix(
            f"onnx::MatMul_{1000 + place}",
            "/" + one.name.replace("layer.", "layer[a].").replace(".weight", "/MatMul"),
            one.inputs,
            one.outputs,
        )
        for place, one in enumerate(bert(layers))
    ]


def kept_by(recipe: Int8Recipe, matrices: list[StoredMatrix]) -> set[str]:
    return {one.name for one in matrices if not recipe.makes_int8(one)}


def test_every_way_is_tried_once_the_fastest_first() -> None:
    matrices = bert(12)
    recipes = list_recipes(matrices)
    ways = {(one.group_size, len(one.keep)) for one in recipes}
    assert ways == {(size, keeps) for size in (32, 64, 128) for keeps in (0, 2, 4)}
    assert len(recipes) == 12  # two patterns are the second matrices' or the ends'
    times = [relative_time(one, matrices) for one in recipes]
    assert times == sorted(times)
    assert recipes[0] == Int8Recipe(group_size=128)
    assert len({str(one.facts) for one in recipes}) == 12


def test_what_is_kept_are_the_second_matrices_the_ends_or_both_and_nothing_beside() -> None:
    matrices = bert(12)
    start = "transformer.encoder.layer"
    seconds = {f"{start}.{layer}.output.dense.weight" for layer in range(12)}
    ends = {one.name for one in matrices if one.name.startswith((f"{start}.0.", f"{start}.11."))}
    found = {frozenset(kept_by(one, matrices)) for one in list_recipes(matrices)}
    assert found == {frozenset(), frozenset(seconds), frozenset(ends), frozenset(seconds | ends)}


@pytest.mark.parametrize(
    ("shapes", "seconds"),
    [
        # A decoder, whose attention's output has more inputs than outputs as well.
        ({"q": (128, 256), "o": (256, 128), "up": (128, 384), "down": (384, 128)}, {"down"}),
        ({"up": (128, 256), "square": (256, 256)}, set[str]()),  # none narrows
    ],
)
def test_the_second_matrix_of_a_feed_forward_is_the_one_with_most_inputs_that_narrows(
    shapes: dict[str, tuple[int, int]], seconds: set[str]
) -> None:
    matrices = [
        StoredMatrix(f"layers.{layer}.{name}.weight", "", *shape)
        for layer in range(4)
        for name, shape in shapes.items()
    ]
    found = [
        kept_by(one, [one for one in matrices if ".1." in one.name])
        for one in list_recipes(matrices)
    ]
    kept = {name.split(".")[2] for names in found for name in names}
    assert kept == seconds


def test_time_counts_multiplications() -> None:
    matrices = bert(12)
    everything = 12 * 12 + 1  # in units of hidden x hidden: twelve a layer, and the pooler
    seconds = 12 * 4
    by_size = {size: relative_time(Int8Recipe(group_size=size), matrices) for size in (32, 64, 128)}
    assert by_size[128] < by_size[64] < by_size[32] < 1
    kept = Int8Recipe(
        group_size=128, keep=("*.[0-9].output.dense.weight", "*.1[01].output.dense.*")
    )
    assert relative_time(kept, matrices) == pytest.approx(
        (seconds + (everything - seconds) * by_size[128]) / everything
    )
    assert relative_time(Int8Recipe(keep=("*",)), matrices) == 1


def test_layers_are_found_by_the_names_of_products_too_whatever_characters_these_have() -> None:
    matrices, names = published(3), bert(3)
    number = {one.name: other.name for one, other in zip(matrices, names, strict=True)}
    found = {
        frozenset(number[name] for name in kept_by(one, matrices)) for one in list_recipes(matrices)
    }
    assert found == {frozenset(kept_by(one, names)) for one in list_recipes(names)}
    assert len(found) == 4


@pytest.mark.parametrize(
    ("matrices", "recipes"),
    [
        ([], 0),
        (bert(2, hidden=24), 1),  # 96 inputs of the second matrices are groups of 32
        (bert(2, hidden=40), 1),  # 160 inputs
        (bert(2, hidden=10), 0),
        ([StoredMatrix("a", "b", 128, 256), StoredMatrix("c", "d", 256, 128)], 3),  # no layers
        (bert(2), 6),  # of two layers both are ends
    ],
)
def test_a_way_that_leaves_nothing_to_do_is_none(
    matrices: list[StoredMatrix], recipes: int
) -> None:
    found = list_recipes(matrices)
    assert len(found) == recipes
    for one in found:
        assert any(one.makes_int8(matrix) for matrix in matrices)


ENOUGH = Kept(mean_cosine=0.9991, min_cosine=0.9951, neighbours_kept=0.974)
RECIPES = [Int8Recipe(group_size=size) for size in (128, 64, 32)]


def test_the_first_that_keeps_enough_is_chosen_and_no_further_one_is_tried() -> None:
    asked = []

    def measure(recipe: Int8Recipe) -> Kept:
        asked.append(recipe.group_size)
        return ENOUGH if recipe.group_size == 64 else replace(ENOUGH, neighbours_kept=0.96)

    chosen = choose(RECIPES, measure)
    assert chosen is not None
    assert asked == [128, 64]
    assert chosen.kept == ENOUGH
    # Twice as far from float32 as it was measured is the floor of a start.
    assert chosen.recipe == Int8Recipe(group_size=64, min_cosine=0.9902)
    assert chosen.recipe.offered


def test_the_floor_of_a_start_is_never_nearer_than_that_of_bfloat16() -> None:
    chosen = choose(RECIPES, lambda recipe: Kept(1.0, 0.9999999, 1.0))
    assert chosen is not None
    assert chosen.recipe.min_cosine == 0.9995


@pytest.mark.parametrize("figure", ["mean_cosine", "min_cosine", "neighbours_kept"])
@pytest.mark.parametrize("short", [-1e-6, math.nan])
def test_each_figure_counts(figure: str, short: float) -> None:
    assert FLOORS.is_at_least(FLOORS)
    found = replace(FLOORS, **{figure: getattr(FLOORS, figure) + short})
    assert not found.is_at_least(FLOORS)
    chosen = choose(RECIPES, lambda recipe: found)
    assert chosen is not None
    assert not chosen.recipe.offered


def test_where_none_keeps_enough_int8_is_not_offered_and_the_nearest_is_told() -> None:
    shares = {128: 0.90, 64: 0.95, 32: 0.94}
    chosen = choose(RECIPES, lambda one: Kept(0.99, 0.95, shares[one.group_size]))
    assert chosen is not None
    assert chosen.recipe == Int8Recipe(offered=False, group_size=64)
    assert chosen.kept.neighbours_kept == 0.95
    assert choose([], lambda recipe: ENOUGH) is None


def test_one_that_failed_or_gave_no_numbers_is_passed_over() -> None:
    no_number = Kept(math.nan, math.nan, 0.9)
    by_size = {128: NOTHING, 64: no_number, 32: ENOUGH}
    chosen = choose(RECIPES, lambda one: by_size[one.group_size])
    assert chosen is not None
    assert (chosen.recipe.offered, chosen.recipe.group_size) == (True, 32)
    by_size[32] = Kept(0.5, 0.1, 0.2)  # little, but numbers
    chosen = choose(RECIPES, lambda one: by_size[one.group_size])
    assert chosen is not None
    assert (chosen.recipe.offered, chosen.recipe.group_size) == (False, 32)


def test_the_page_says_what_is_enough_and_what_counts_as_fast() -> None:
    page = (REPOSITORY / "docs/how-to/cpu-precision.md").read_text(encoding="utf-8")
    assert (
        f"Enough is a mean cosine of {FLOORS.mean_cosine}, a least one of {FLOORS.min_cosine}, and "
        f"{FLOORS.neighbours_kept:.0%}".replace("%", " %")
    ) in page
    square = [StoredMatrix("a", "b", 128, 128)]
    first, second, third = (
        relative_time(Int8Recipe(group_size=one), square) for one in (128, 64, 32)
    )
    assert f"in int8 {first}, {second} and {third} with groups of 128, 64 and 32." in page
