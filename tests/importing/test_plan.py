"""Whose sizes an imported model gets: the person's or the published."""

from __future__ import annotations

import pytest

from server.catalog.card import Matryoshka
from server.errors import ImportRefused
from server.importing.families import Family
from server.importing.plan import Wishes, choose_sizes

FAMILY = Family("known", "org/known", dimensions=(64, 32))


@pytest.mark.parametrize(
    ("wished", "family", "sizes", "told"),
    [
        ((), None, None, "Matryoshka sizes: none (none are known; --matryoshka says them)"),
        ((16, 48), None, (48, 16), "Matryoshka sizes: 48, 16 (--matryoshka)"),
        ((16,), FAMILY, (48, 16), "Matryoshka sizes: 48, 16 (--matryoshka)"),
        ((), FAMILY, (48, 32), "Matryoshka sizes: 48, 32 (table of families, from org/known)"),
    ],
)
def test_sizes_begin_with_the_models_own(
    wished: tuple[int, ...], family: Family | None, sizes: tuple[int, ...] | None, told: str
) -> None:
    lines: list[str] = []
    found = choose_sizes(48, family, Wishes(matryoshka=wished), lines.append)
    assert found == (Matryoshka(dimensions=sizes) if sizes else None)
    assert lines == [told]


def test_a_family_may_want_a_layer_norm_before_the_cut() -> None:
    family = Family("known", "org/known", dimensions=(32,), layer_norm=True)
    lines: list[str] = []
    found = choose_sizes(48, family, Wishes(), lines.append)
    assert found == Matryoshka(dimensions=(48, 32), layer_norm=True)
    assert lines[-1] == "layer norm before the cut: yes (table of families, from org/known)"


@pytest.mark.parametrize("size", [0, -1, 49])
def test_a_size_that_is_none_of_the_models_is_refused(size: int) -> None:
    with pytest.raises(ImportRefused, match=f"--matryoshka: {size} is not between 1 and 48"):
        choose_sizes(48, None, Wishes(matryoshka=(16, size)), lambda _: None)
