"""A text's vector over HTTP has the same bits alone, in any company and order, and under any load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import MATRYOSHKA, PLAIN
from tests.server_process import ServerProcess

TEXTS = 24
LOADING_TEXTS = 24


class Wish(NamedTuple):
    """What of a vector is asked for."""

    model: str
    dimensions: int | None


class Vectors(dict[tuple[Wish, int], str]):
    """In base64, by the text's number; never shown, since hypothesis would show them all."""

    __repr__ = object.__repr__


WISHES = (Wish(PLAIN, None), Wish(MATRYOSHKA, None), Wish(MATRYOSHKA, 100))
requests = st.tuples(
    st.sampled_from(WISHES), st.lists(st.integers(0, TEXTS - 1), min_size=1, max_size=12)
)
histories = st.lists(requests, min_size=1, max_size=10)


def make_text(numbers: random.Random) -> str:
    """From one letter to more than the model reads, most of them short, some of no Latin letters."""
    words = ["cat", "naïve", "unbelievably", "größer", "東京", "42.5%", "🙂", "the", "of", "Zürich"]
    return " ".join(numbers.choices(words, k=min(90, max(1, int(numbers.lognormvariate(2.2, 1))))))


NUMBERS = random.Random(17)
texts = [make_text(NUMBERS) for _ in range(TEXTS)]


async def ask(client: httpx.AsyncClient, wish: Wish, inputs: Sequence[str]) -> list[str]:
    body: dict[str, object] = {"model": wish.model, "input": inputs, "encoding_format": "base64"}
    if wish.dimensions is not None:
        body["dimensions"] = wish.dimensions
    answer = await client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return [row["embedding"] for row in answer.json()["data"]]


@pytest.fixture(scope="module")
def alone(server: ServerProcess) -> Vectors:
    """Each text's vectors, asked for one after the other while nothing else is computed."""

    async def ask_all() -> Vectors:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            vectors = Vectors()
            for wish in WISHES:
                for number, text in enumerate(texts):
                    (vectors[wish, number],) = await ask(client, wish, [text])
            return vectors

    return asyncio.run(ask_all())


@given(histories, st.integers(0, 2**32))
@settings(max_examples=5)
def test_each_vector_has_the_bits_that_it_has_alone(
    server: ServerProcess,
    alone: Vectors,
    history: list[tuple[Wish, list[int]]],
    load: int,
) -> None:
    """Requests of a history run side by side, beside another client's, which indexes."""
    numbers = random.Random(load)
    others = [make_text(numbers) for _ in range(LOADING_TEXTS)]

    async def live() -> list[list[str]]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            indexing = asyncio.create_task(ask(client, WISHES[load % 2], others))
            found = await asyncio.gather(
                *(ask(client, wish, [texts[number] for number in asked]) for wish, asked in history)
            )
            await indexing
            return found

    for (wish, asked), found in zip(history, asyncio.run(live()), strict=True):
        assert found == [alone[wish, number] for number in asked]
