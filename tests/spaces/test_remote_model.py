from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from server.errors import RemoteServerError, RemoteServerRefused, TextFileError
from server.offline.embed_windows import EmbeddingProgress
from server.spaces.embeddings_client import EmbeddingsClient
from server.spaces.remote_model import REQUEST_TEXTS, RemoteModel
from server.spaces.side import Asked
from server.spaces.text_lines import TextLine
from tests.spaces.conftest import Scripted, embeddings

COUNT = 2 * REQUEST_TEXTS + 10
LINES = [TextLine(i, "f.txt", 2 * i + 1, f"{i:x}") for i in range(COUNT)]


def of_number(body: dict[str, Any]) -> bytes:
    """Vectors that tell which text they are of."""
    numbers = [0 if text == "probe" else int(text, 16) for text in body["input"]]
    vectors = [np.array([number, 1], np.float32) for number in numbers]
    return orjson.dumps(embeddings(vectors, model="of-the-server"))


def opened(scripted: Scripted, asked: Asked | None = None) -> RemoteModel:
    return RemoteModel("URL#m", EmbeddingsClient(scripted.url), "m", asked or Asked())


def test_the_texts_come_back_in_order_over_many_requests(scripted: Scripted) -> None:
    scripted.make = of_number
    shown: list[EmbeddingProgress] = []
    vectors, facts = opened(scripted).embed(LINES, shown.append)
    assert vectors[:, 0].tolist() == list(range(COUNT))
    assert [len(body["input"]) for _, _, body in scripted.asked] == [1, 256, 256, 10]
    assert [progress.texts for progress in shown] == [256, 512, COUNT]
    assert (facts.given, facts.model, facts.dimensions) == ("URL#m", "of-the-server", 2)


def test_fields_of_our_own_are_sent_only_if_they_are_wanted(scripted: Scripted) -> None:
    scripted.make = of_number
    opened(scripted)
    opened(scripted, Asked(input_type="query", truncate=True))
    plain, wanted = (body for _, _, body in scripted.asked)
    common = {"model": "m", "input": ["probe"], "encoding_format": "base64"}
    assert plain == common
    assert wanted == common | {"input_type": "query", "truncate": True}


def refusal(message: str, code: str | None = None) -> object:
    return {"error": {"message": message, "type": "t", "param": "input", "code": code}}


def test_a_refused_input_is_named_by_its_line(scripted: Scripted) -> None:
    probed = embeddings([np.ones(2, np.float32)])
    too_long = (
        "This model's maximum context length is 256 tokens, however you requested 402 tokens "
        '(input[7]). Shorten the input, or send "truncate": true to have it cut.'
    )
    scripted.then(200, probed).then(400, refusal(too_long, "context_length_exceeded"))
    with pytest.raises(TextFileError) as caught:
        opened(scripted).embed(LINES, lambda _: None)
    assert caught.value.message == (
        "f.txt line 15: refused by URL#m: This model's maximum context length is 256 tokens, "
        "however you requested 402 tokens; shorten the text, or cut it by --truncate"
    )
    scripted.answers.clear()
    scripted.then(200, probed).then(400, refusal("input[9] holds a token"))
    with pytest.raises(TextFileError, match=r"f\.txt line 19: .*input\[9\] holds a token$"):
        opened(scripted).embed(LINES, lambda _: None)


@pytest.mark.parametrize("message", ["no", "input[256] is bad"])
def test_a_refusal_of_no_known_input_is_told_as_it_is(scripted: Scripted, message: str) -> None:
    scripted.then(200, embeddings([np.ones(2, np.float32)])).then(400, refusal(message))
    with pytest.raises(RemoteServerRefused, match="answers 400"):
        opened(scripted).embed(LINES, lambda _: None)


def test_a_server_that_changes_its_vectors_meanwhile_is_named(scripted: Scripted) -> None:
    one, wider = (np.ones(size, np.float32) for size in (2, 3))
    scripted.then(200, embeddings([one])).then(200, embeddings([wider] * 5))
    with pytest.raises(RemoteServerError, match="3 dimensions, and before of 2"):
        opened(scripted).embed(LINES[:5], lambda _: None)
    scripted.answers.clear()
    scripted.then(200, embeddings([one]), x_embedding_fingerprint="a")
    scripted.then(200, embeddings([one] * 5), x_embedding_fingerprint="b")
    with pytest.raises(RemoteServerError, match="changed from a to b"):
        opened(scripted).embed(LINES[:5], lambda _: None)
