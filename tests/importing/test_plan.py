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
FILE = "config_sentence_transformers.json"
PUBLISHED = [
    'prompt query: "theirs: " (table of families, from org/known)',
    'prompt document: "d: " (table of families, from org/known)',
]


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
        ({}, None, {}, {}, [f"prompts: none ({FILE} names none)"]),
        ({"query": "own: "}, FAMILY, {}, {"query": "own: "}, [f'prompt query: "own: " ({FILE})']),
        ({}, FAMILY, {}, dict(FAMILY.prompts), PUBLISHED),
        ({"query": ""}, FAMILY, {}, dict(FAMILY.prompts), PUBLISHED),
        (
            {"query": "own: "},
            None,
            {"query": "mine: "},
            {"query": "mine: "},
            ['prompt query: "mine: " (--query-prompt)'],
        ),
        ({"query": "own: "}, None, {"query": ""}, {}, ['prompt query: "" (--query-prompt)']),
        (
            {"query": "own: "},
            None,
            {"document": "two\nlines"},
            {"query": "own: ", "document": "two\nlines"},
            [
                f'prompt query: "own: " ({FILE})',
                'prompt document: "two\\nlines" (--document-prompt)',
            ],
        ),
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
