"""Whose prompts and sizes an imported model gets: the person's, the folder's, or the published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.catalog.card import Matryoshka
from server.errors import ImportRefused
from server.importing.families import Family
from server.importing.folder import ModelFolder
from server.importing.head import Head
from server.importing.plan import Wishes, choose_prompts, choose_sizes

FAMILY = Family(
    "known", "org/known", dimensions=(64, 32), prompts={"query": "theirs: ", "document": "d: "}
)


def folder(**prompts: str) -> ModelFolder:
    facts: dict[str, Any] = {
        "path": Path("folder"),
        "config": {"model_type": "bert"},
        "head": Head("mean", (), normalize=True),
        "assumed_head": False,
        "prompts": prompts,
        "default_prompt": None,
        "max_input_tokens": 8,
        "lower_case": False,
        "weights": (),
    }
    return ModelFolder(**facts)


@pytest.mark.parametrize(
    ("own", "family", "wished", "chosen", "told"),
    [
        ({}, None, {}, {}, []),
        ({"query": "own: "}, FAMILY, {}, {"query": "own: "}, []),
        ({}, FAMILY, {}, dict(FAMILY.prompts), ["prompts as published for org/known"]),
        ({"query": ""}, FAMILY, {}, dict(FAMILY.prompts), ["prompts as published for org/known"]),
        ({"query": "own: "}, None, {"query": "mine: "}, {"query": "mine: "}, []),
        ({"query": "own: "}, None, {"query": ""}, {}, []),
        ({"query": "own: "}, None, {"document": "m: "}, {"query": "own: ", "document": "m: "}, []),
    ],
)
def test_prompts_are_the_persons_before_the_folders_before_the_published(
    own: dict[str, str], family: Family | None, wished: Any, chosen: object, told: list[str]
) -> None:
    lines: list[str] = []
    wishes = Wishes(prompts=wished)
    assert choose_prompts(folder(**own), family, wishes, lines.append) == chosen
    assert lines == told


@pytest.mark.parametrize(
    ("wished", "family", "sizes", "told"),
    [
        ((), None, None, []),
        ((16, 48), None, (48, 16), []),
        ((16,), FAMILY, (48, 16), []),
        ((), FAMILY, (48, 32), ["Matryoshka sizes as published for org/known"]),
    ],
)
def test_sizes_begin_with_the_models_own(
    wished: tuple[int, ...], family: Family | None, sizes: tuple[int, ...] | None, told: list[str]
) -> None:
    lines: list[str] = []
    found = choose_sizes(48, family, Wishes(matryoshka=wished), lines.append)
    assert found == (Matryoshka(dimensions=sizes) if sizes else None)
    assert lines == told


def test_a_family_may_want_a_layer_norm_before_the_cut() -> None:
    family = Family("known", "org/known", dimensions=(32,), layer_norm=True)
    found = choose_sizes(48, family, Wishes(), lambda _: None)
    assert found == Matryoshka(dimensions=(48, 32), layer_norm=True)


@pytest.mark.parametrize("size", [0, -1, 49])
def test_a_size_that_is_none_of_the_models_is_refused(size: int) -> None:
    with pytest.raises(ImportRefused, match=f"--matryoshka: {size} is not between 1 and 48"):
        choose_sizes(48, None, Wishes(matryoshka=(16, size)), lambda _: None)
