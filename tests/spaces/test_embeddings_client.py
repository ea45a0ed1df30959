from __future__ import annotations

import socket
import time

import numpy as np
import pytest

from server.errors import RemoteServerError, RemoteServerRefused
from server.spaces import embeddings_client
from server.spaces.embeddings_client import EmbeddingsClient
from tests.spaces.conftest import Scripted, embeddings

KEY = "sk-0123456789abcdefghij"
VECTORS = [np.array([0.1, -2.5, 3e-8], np.float32), np.array([1, 0, -0.0], np.float32)]
LATER = {"error": {"message": "later", "type": "x", "param": None, "code": None}}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the client would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def test_vectors_come_bit_for_bit_as_base64_was_asked_for(scripted: Scripted) -> None:
    scripted.then(200, embeddings(VECTORS, tokens=7), x_embedding_fingerprint="abc")
    answer = EmbeddingsClient(scripted.url, KEY).embed(["a", "ü"], model="m", truncate=True)
    assert answer.vectors.tobytes() == np.stack(VECTORS).tobytes()
    assert (answer.model, answer.tokens, answer.fingerprint) == ("m", 7, "abc")
    ((path, headers, body),) = scripted.asked
    assert path == "/v1/embeddings"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "input": ["a", "ü"], "encoding_format": "base64", "model": "m", "truncate": True,
    }  # fmt: skip


def test_lists_of_numbers_are_read_too_and_no_more_need_be_told(scripted: Scripted) -> None:
    lists = [[float(number) for number in vector] for vector in VECTORS]
    scripted.then(200, {"data": [{"embedding": one} for one in lists]})
    answer = EmbeddingsClient(scripted.url).embed(["a", "b"])
    assert answer.vectors.tobytes() == np.stack(VECTORS).tobytes()
    assert (answer.model, answer.tokens, answer.fingerprint) == (None, 0, None)
    assert "Authorization" not in scripted.asked[0][1]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"<html>", "no list of embeddings"),
        ({"data": [{}]}, "no list of embeddings"),
        ([1], "no list of embeddings"),
        ({"data": None}, "no list of embeddings"),
        (embeddings([VECTORS[0]] * 3), "3 vectors came for 2 texts"),
        (embeddings([VECTORS[0]]), "1 vectors came for 2 texts"),
        (embeddings([VECTORS[0], VECTORS[0][:2]]), "vectors of 2 and 3 dimensions"),
        (embeddings([[], []]), "vectors of 0 dimensions"),
        (embeddings(["AAA", "AAA="]), "neither base64"),
        (embeddings(["AAAAAAA=", "AAAAAAA="]), "neither base64"),
        (embeddings(["AAA\nAAA==", "AAA\nAAA=="]), "neither base64"),
        (embeddings([[[1.0]], [1.0]]), "neither base64"),
        (embeddings([{"a": 1}, [1.0]]), "neither base64"),
        (embeddings([None, [1.0]]), "neither base64"),
    ],
)
def test_an_answer_that_is_none_is_named(scripted: Scripted, answer: object, told: str) -> None:
    scripted.then(200, answer)
    with pytest.raises(RemoteServerError, match=told) as caught:
        EmbeddingsClient(scripted.url).embed(["a", "b"])
    assert scripted.url in caught.value.message


def test_embeddings_belong_to_the_texts_that_their_index_says(scripted: Scripted) -> None:
    answer = embeddings(VECTORS)
    answer["data"].reverse()
    scripted.then(200, answer)
    vectors = EmbeddingsClient(scripted.url).embed(["a", "b"]).vectors
    assert vectors.tobytes() == np.stack(VECTORS).tobytes()


@pytest.mark.parametrize("indexes", [(0, 0), (0, 2), (0, None), ("0", "1"), (False, True)])
def test_indexes_that_name_no_text_each_are_an_error(
    scripted: Scripted, indexes: tuple[object, object]
) -> None:
    answer = embeddings(VECTORS)
    for row, index in zip(answer["data"], indexes, strict=True):
        row["index"] = index
    scripted.then(200, answer)
    with pytest.raises(RemoteServerError, match="indexes are not those from 0 to 1"):
        EmbeddingsClient(scripted.url).embed(["a", "b"])


def test_vectors_of_a_size_that_no_model_has_are_refused(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_client, "MAX_ANSWER_DIMENSIONS", 2)
    scripted.then(200, embeddings(VECTORS))
    with pytest.raises(RemoteServerError, match="vectors of 3 dimensions came, more than 2"):
        EmbeddingsClient(scripted.url).embed(["a", "b"])


def test_numbers_beyond_float32_are_infinity_and_not_a_warning(scripted: Scripted) -> None:
    scripted.then(200, embeddings([[1e300, 1.0]]))
    assert np.isinf(EmbeddingsClient(scripted.url).embed(["a"]).vectors[0, 0])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_when_it_says(
    scripted: Scripted, waits: list[float], status: int
) -> None:
    scripted.then(status, LATER, Retry_After="7").then(status, LATER)
    scripted.then(status, LATER, Retry_After="soon").then(status, LATER, Retry_After="0")
    scripted.then(200, embeddings(VECTORS))
    assert len(EmbeddingsClient(scripted.url).embed(["a", "b"]).vectors) == 2
    assert waits == [7, 2, 4, 1]
    assert len({str(body) for _, _, body in scripted.asked}) == 1


@pytest.mark.parametrize("asked_s", ["30", "91", "0", "99999999999999999999", "soon"])
def test_a_server_that_stays_busy_is_given_up(
    scripted: Scripted, waits: list[float], asked_s: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_client, "MAX_WAIT_S", 90)
    scripted.then(503, LATER, Retry_After=asked_s)
    with pytest.raises(RemoteServerRefused, match="answers 503: later"):
        EmbeddingsClient(scripted.url).embed(["a"])
    assert sum(waits) <= 90
    assert len(scripted.asked) == len(waits) + 1
    assert bool(waits) == (asked_s not in ("91", "9" * 20))


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 500, 502])
def test_other_errors_are_told_at_once(scripted: Scripted, waits: list[float], status: int) -> None:
    error = {"message": "no \x1b[31m such\nthing", "code": "some_code"}
    scripted.then(status, {"error": error}, Retry_After="1")
    with pytest.raises(RemoteServerRefused) as caught:
        EmbeddingsClient(scripted.url).embed(["a"])
    assert caught.value.message == f"{scripted.url}/embeddings answers {status}: no [31m such thing"
    assert caught.value.code == "some_code"
    assert waits == []


@pytest.mark.parametrize(
    "body", [b"", b"<h1>Bad Gateway", b"[]", b'{"error": "no"}', b'{"error": {}}']
)
def test_an_error_of_another_shape_is_told_by_its_status(scripted: Scripted, body: bytes) -> None:
    scripted.then(502, body)
    with pytest.raises(RemoteServerRefused, match="answers 502: Bad Gateway"):
        EmbeddingsClient(scripted.url).embed(["a"])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_key_goes_to_no_other_place_and_into_no_message(scripted: Scripted, status: int) -> None:
    message = f"key {KEY} is wrong" + " and so on" * 100
    scripted.then(status, {"error": {"message": message}}, Location=f"{scripted.url}/elsewhere")
    with pytest.raises(RemoteServerRefused) as caught:
        EmbeddingsClient(scripted.url, KEY).embed(["a"])
    assert len(scripted.asked) == 1
    assert KEY not in caught.value.message
    assert f"answers {status}: key *** is wrong" in caught.value.message
    assert len(caught.value.message) < 500


def test_what_a_server_says_of_itself_holds_no_key_and_steers_no_terminal(
    scripted: Scripted,
) -> None:
    answer = embeddings(VECTORS, model=f"\x1b[2J{KEY}")
    scripted.then(200, answer, x_embedding_fingerprint=f"{KEY}\x1b[2J")
    said = EmbeddingsClient(scripted.url, KEY).embed(["a", "b"])
    assert (said.model, said.fingerprint) == ("[2J***", "*** [2J")


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.socket() as taken:  # bound, and does not listen
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(RemoteServerError, match="refused") as caught:
            EmbeddingsClient(url).embed(["a"])
    assert url in caught.value.message


def test_a_server_that_hangs_up_is_named(scripted: Scripted) -> None:
    scripted.then(200, b"{", Content_Length="100")
    with pytest.raises(RemoteServerError, match=scripted.url):
        EmbeddingsClient(scripted.url).embed(["a"])


def test_an_answer_without_end_is_not_read(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_client, "MAX_ANSWER_BYTES", 100)
    scripted.then(200, b" " * 101)
    with pytest.raises(RemoteServerError, match="more than 100 bytes"):
        EmbeddingsClient(scripted.url).embed(["a"])


def test_an_answer_that_only_trickles_is_given_up(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_client, "MAX_READ_S", 0)
    scripted.then(200, embeddings(VECTORS))
    with pytest.raises(RemoteServerError, match="takes longer than 0 s"):
        EmbeddingsClient(scripted.url).embed(["a", "b"])


def test_an_errors_words_that_only_trickle_are_given_up(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings_client, "MAX_READ_S", 0)
    scripted.then(502, LATER)
    with pytest.raises(RemoteServerRefused, match="answers 502: Bad Gateway"):
        EmbeddingsClient(scripted.url).embed(["a"])


def test_no_proxy_stands_before_a_server_of_this_machine(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    scripted.then(200, embeddings(VECTORS))
    for host in ("127.0.0.1", "localhost"):
        url = scripted.url.replace("127.0.0.1", host)
        assert len(EmbeddingsClient(url).embed(["a", "b"]).vectors) == 2
