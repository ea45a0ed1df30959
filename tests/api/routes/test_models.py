from __future__ import annotations

import httpx
import pytest

from server.catalog.card import Card
from server.http.app import create_app
from server.settings import Settings
from tests.conftest import MATRYOSHKA, PLAIN, client_of


def test_each_model_has_openais_fields_and_ours(
    http: httpx.Client, plain_card: Card, matryoshka_card: Card
) -> None:
    answer = http.get("/v1/models").json()
    assert answer["object"] == "list"
    assert answer["data"] == [
        {
            "id": MATRYOSHKA,
            "object": "model",
            "created": 1630281600,  # 2021-08-30
            "owned_by": "sentence-transformers",
            "embedding_dim": 384,
            "max_input_tokens": 256,
            "normalized": True,
            "matryoshka": True,
            "dimensions": [384, 256, 128, 64, 32],
            "aliases": [
                "text-embedding-3-small",
                "text-embedding-3-large",
                "text-embedding-ada-002",
            ],
            "prompts": {},
            "default_prompt": None,
            "fingerprint": matryoshka_card.fingerprint,
        },
        {
            "id": PLAIN,
            "object": "model",
            "created": 1630281600,
            "owned_by": "sentence-transformers",
            "embedding_dim": 384,
            "max_input_tokens": 256,
            "normalized": True,
            "matryoshka": False,
            "dimensions": None,
            "aliases": [],
            "prompts": {},
            "default_prompt": None,
            "fingerprint": plain_card.fingerprint,
        },
    ]
    assert plain_card.fingerprint != matryoshka_card.fingerprint


@pytest.mark.parametrize("name", [MATRYOSHKA, "text-embedding-3-small"])
def test_a_model_is_found_by_name_and_alias(http: httpx.Client, name: str) -> None:
    assert http.get(f"/v1/models/{name}").json()["id"] == MATRYOSHKA


@pytest.mark.parametrize("name", ["gpt-5", "organisation/model", "organisation%2Fmodel"])
def test_an_unknown_model_is_not_found_also_with_a_slash(http: httpx.Client, name: str) -> None:
    response = http.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_a_slash_behind_the_path_lists_the_models_too() -> None:
    app = create_app(Settings(model=[PLAIN]))
    async with client_of(app) as client:
        response = await client.get("/v1/models/")
        assert response.status_code == 200
        assert response.json() == (await client.get("/v1/models")).json()
        assert [model["id"] for model in response.json()["data"]] == [PLAIN]
        page = (await client.get("/metrics")).text
    assert 'requests_total{model="",route="/v1/models",status="200"} 2.0' in page
