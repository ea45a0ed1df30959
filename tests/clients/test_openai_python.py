"""The openai package of PyPI, unchanged, against a real server process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import openai
import pytest

from tests.conftest import MATRYOSHKA, PLAIN
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

TEXTS = ["The cat sat on the mat.", "Stock prices fell.", "日本語のテキスト 🎉"]


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="sk-none", max_retries=0) as client:
        yield client


def vectors(answer: openai.types.CreateEmbeddingResponse) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:  # fmt: skip
    return np.array([row.embedding for row in answer.data])


def test_its_default_base64_is_bit_for_bit_the_float_answer(client: openai.OpenAI) -> None:
    default = client.embeddings.create(model=MATRYOSHKA, input=TEXTS)
    floats = client.embeddings.create(model=MATRYOSHKA, input=TEXTS, encoding_format="float")
    assert vectors(default).astype(np.float32).tobytes() == (
        vectors(floats).astype(np.float32).tobytes()
    )
    assert [row.index for row in default.data] == [0, 1, 2]
    assert default.model == MATRYOSHKA
    assert default.usage.prompt_tokens == default.usage.total_tokens > 0


async def test_the_async_client_gets_the_same(client: openai.OpenAI, server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-none") as asynchronous:
        answer = await asynchronous.embeddings.create(model=PLAIN, input=TEXTS)
    same = client.embeddings.create(model=PLAIN, input=TEXTS)
    np.testing.assert_allclose(vectors(answer), vectors(same), atol=1e-6)


def test_openais_model_names_work(client: openai.OpenAI) -> None:
    for name in ("text-embedding-3-small", "text-embedding-3-large", "text-embedding-ada-002"):
        assert client.embeddings.create(model=name, input="x").model == MATRYOSHKA


def test_dimensions_cut_and_normalise(client: openai.OpenAI) -> None:
    full = vectors(client.embeddings.create(model=MATRYOSHKA, input=TEXTS))
    for dimensions in (1, 32, 100, 384):
        cut = vectors(
            client.embeddings.create(model=MATRYOSHKA, input=TEXTS, dimensions=dimensions)
        )
        prefix = full[:, :dimensions].copy()
        prefix /= np.linalg.norm(prefix, axis=1, keepdims=True)
        np.testing.assert_allclose(cut, prefix, atol=1e-5)


def test_token_ids_give_the_vector_of_their_text(client: openai.OpenAI) -> None:
    hello_world = [9906, 11, 1917]
    from_ids = client.embeddings.create(model=PLAIN, input=hello_world)
    from_lists = client.embeddings.create(model=PLAIN, input=[hello_world, [9906]])
    from_text = client.embeddings.create(model=PLAIN, input=["Hello, world", "Hello"])
    np.testing.assert_allclose(vectors(from_lists), vectors(from_text), atol=1e-6)
    np.testing.assert_allclose(vectors(from_ids)[0], vectors(from_text)[0], atol=1e-6)
    assert from_lists.usage == from_text.usage


def test_a_thousand_texts_keep_their_order(client: openai.OpenAI) -> None:
    texts = [f"document number {n} " + "word " * (n % 50) for n in range(1000)]
    many = vectors(client.embeddings.create(model=PLAIN, input=texts))
    for n in (0, 1, 499, 998, 999):
        alone = vectors(client.embeddings.create(model=PLAIN, input=texts[n]))[0]
        np.testing.assert_allclose(many[n], alone, atol=1e-5)


def test_models_are_listed_and_retrieved_also_by_alias(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MATRYOSHKA, PLAIN]
    assert client.models.retrieve(PLAIN).owned_by == "sentence-transformers"
    assert client.models.retrieve("text-embedding-3-large").id == MATRYOSHKA
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_refusals_are_the_sdks_exceptions(client: openai.OpenAI, server: ServerProcess) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.embeddings.create(model="no-such-model", input="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.embeddings.create(model=PLAIN, input=["fine", ""])
    assert bad.value.param == "input"
    assert "input[1]" in bad.value.message
    with pytest.raises(openai.BadRequestError, match="does not support specifying dimensions"):
        client.embeddings.create(model=PLAIN, input="x", dimensions=128)
    assert bad.value.request_id


def test_a_pinned_fingerprint_lets_only_its_own_vectors_through(client: openai.OpenAI) -> None:
    def pinned(model: str, fingerprint: str) -> openai.types.CreateEmbeddingResponse:
        pin = {"x-expect-embedding-fingerprint": fingerprint}
        return client.embeddings.create(model=model, input="x", extra_headers=pin)

    served = {model.id: (model.model_extra or {})["fingerprint"] for model in client.models.list()}
    raw = client.embeddings.with_raw_response.create(model=PLAIN, input="x")
    assert raw.headers["x-embedding-fingerprint"] == served[PLAIN]
    assert pinned(PLAIN, served[PLAIN]).model == PLAIN
    with pytest.raises(openai.BadRequestError) as refused:
        pinned(PLAIN, served[MATRYOSHKA])
    assert refused.value.code == "embedding_fingerprint_mismatch"
    assert served[PLAIN] in refused.value.message
    assert served[MATRYOSHKA] in refused.value.message


def test_a_wrong_key_is_its_authentication_error() -> None:
    with ServerProcess("--api-key", "sk-right", "--model", PLAIN) as guarded:
        right = openai.OpenAI(base_url=guarded.base_url, api_key="sk-right")
        assert len(right.embeddings.create(model=PLAIN, input="x").data) == 1
        wrong = openai.OpenAI(base_url=guarded.base_url, api_key="sk-wrong-but-long-enough")
        with pytest.raises(openai.AuthenticationError) as refused:
            wrong.embeddings.create(model=PLAIN, input="x")
        assert refused.value.code == "invalid_api_key"
        assert "Incorrect API key provided" in refused.value.message
        assert "sk-wrong-but-long-enough" not in refused.value.message
        for client in (right, wrong):
            client.close()
        assert "sk-" not in guarded.log()
