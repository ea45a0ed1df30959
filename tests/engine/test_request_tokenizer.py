"""From a request's inputs to token ids, with a tokenizer that is never done with long texts."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

import pytest

from server.engine.request_tokenizer import HUGE_CHARS, INLINE_CHARS, RequestTokenizer
from server.inference.backend import TokenIds
from server.inference.inputs import TextInputs
from server.inference.tokenizer import Tokenizer
from tests.engine import ids
from tests.fakes import EndlessTokenizer


class NeverDoneWithHugeTexts(EndlessTokenizer):
    """One token for any other text."""

    def encode_texts(
        self, inputs: TextInputs, *, stop: threading.Event, **limits: object
    ) -> list[TokenIds]:
        if sum(map(len, inputs.texts)) > HUGE_CHARS:
            return super().encode_texts(inputs, stop=stop, **limits)
        return [ids(1) for _ in inputs.texts]


def tokenize(tokenizer: RequestTokenizer, *texts: str) -> asyncio.Task[list[TokenIds]]:
    inputs = TextInputs(is_list=True, texts=list(texts))
    return asyncio.create_task(
        tokenizer.tokenize(inputs, prompt="", truncate=True, own_token_ids=False)
    )


@pytest.mark.parametrize("texts", [["a" * (HUGE_CHARS + 1)], ["a" * HUGE_CHARS, "b"]])
async def test_nobody_waits_for_requests_with_huge_texts(texts: list[str]) -> None:
    endless = NeverDoneWithHugeTexts()
    tokenizer = RequestTokenizer(cast(Tokenizer, endless), max_request_tokens=100)
    huge = [tokenize(tokenizer, *texts) for _ in range(3)]
    try:
        assert await asyncio.to_thread(endless.entered.wait, 10)
        async with asyncio.timeout(10):
            assert len(await tokenize(tokenizer, "c" * (INLINE_CHARS + 500))) == 1
            assert len(await tokenize(tokenizer, "c" * HUGE_CHARS)) == 1
        assert not any(request.done() for request in huge)
    finally:
        for request in huge:
            request.cancel()
        await asyncio.wait(huge)
        tokenizer.close()
        tokenizer.join()
    # One was begun and is told to stop; those that had not begun never do.
    assert endless.stopped.is_set()


async def test_closing_begins_no_huge_text_any_more() -> None:
    endless = NeverDoneWithHugeTexts()
    tokenizer = RequestTokenizer(cast(Tokenizer, endless), max_request_tokens=100)
    first = tokenize(tokenizer, "a" * (HUGE_CHARS + 1))
    assert await asyncio.to_thread(endless.entered.wait, 10)
    second = tokenize(tokenizer, "a" * (HUGE_CHARS + 1))
    await asyncio.sleep(0)
    tokenizer.close()
    with pytest.raises(asyncio.CancelledError):
        await second
    first.cancel()
    await asyncio.wait([first])
    tokenizer.join()
    assert endless.stopped.is_set()
