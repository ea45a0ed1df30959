"""Which prompt is put before a request's texts, and whose token ids its numbers are."""

from __future__ import annotations

import pytest

from server.api.reading import Reading
from server.catalog.card import Card
from server.errors import InvalidRequest
from server.inference.inputs import Inputs, TextInputs, TokenIdInputs

TEXTS = TextInputs(is_list=False, texts=["a"])
IDS = TokenIdInputs(is_list=False, token_ids=[[1]])


@pytest.fixture
def card(plain_card: Card) -> Card:
    prompts = {"query": "Q: ", "document": "D: ", "STS": "S: "}
    return plain_card.changed(prompts=prompts, default_prompt="query")


def read(
    card: Card, inputs: Inputs, input_type: str | None, *, own_token_ids: bool = False
) -> Reading:
    return Reading.of(
        card, inputs, input_type=input_type, truncate=False, own_token_ids=own_token_ids
    )


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [(None, "Q: "), ("query", "Q: "), ("passage", "D: "), ("text-matching", "S: ")],
)
def test_the_prompt_is_the_one_asked_for_or_the_default(
    card: Card, input_type: str | None, prompt: str
) -> None:
    expected = Reading(TEXTS, prompt, truncate=False, own_token_ids=False)
    assert read(card, TEXTS, input_type) == expected
    assert read(card, TEXTS, input_type, own_token_ids=True) == expected
    assert read(card, IDS, input_type).prompt == prompt


def test_a_prompt_that_the_model_lacks_is_refused_before_anything_is_read(card: Card) -> None:
    with pytest.raises(InvalidRequest, match="one of 'query', 'document', 'STS' for") as caught:
        read(card, TEXTS, "clustering")
    assert caught.value.param == "input_type"


def test_no_prompt_stands_before_the_models_own_token_ids(card: Card) -> None:
    expected = Reading(IDS, "", truncate=False, own_token_ids=True)
    assert read(card, IDS, None, own_token_ids=True) == expected
    with pytest.raises(InvalidRequest, match="input_type") as caught:
        read(card, IDS, "query", own_token_ids=True)
    assert caught.value.param == "input_type"
