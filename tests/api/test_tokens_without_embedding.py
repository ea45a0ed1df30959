"""A token that was added to the tokenizer and not to the weights: whoever sends it is told so."""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest
from tokenizers import Tokenizer as RustTokenizer

from server.catalog.card import CARD_FILE, TOKENIZER_FILE, Card
from server.catalog.card_file import read_card
from server.errors import InvalidRequest, TextFileError
from server.http.app import create_app
from server.inference.loader import Encoder, load_encoder
from server.offline.embed_windows import embed_sample
from server.offline.embedder import Embedder
from server.settings import Settings
from tests.conftest import PLAIN, client_of
from tests.inference.test_loader import copy_of

NEW = "[NEW]"
NEW_ID = 30_522  # the weights end before it


@pytest.fixture(scope="module")
def card(plain_card: Card, tmp_path_factory: pytest.TempPathFactory) -> Card:
    """The default model with a token more."""
    folder = tmp_path_factory.mktemp("models") / PLAIN
    folder.mkdir()
    copy_of(plain_card, folder)
    path = folder / TOKENIZER_FILE
    rust = RustTokenizer.from_file(str(path))
    rust.add_tokens([NEW])
    rust.save(str(path))
    table = (plain_card.folder / CARD_FILE).read_text()
    pin, content = plain_card.files[TOKENIZER_FILE], path.read_bytes()
    table = table.replace(pin.sha256, hashlib.sha256(content).hexdigest())
    (folder / CARD_FILE).write_text(
        table.replace(f"bytes = {pin.bytes},", f"bytes = {len(content)},")
    )
    return read_card(folder, folder.parent)


@pytest.fixture(scope="module")
def enlarged(card: Card) -> Encoder:
    return load_encoder(card)


def test_the_loader_finds_where_the_weights_end(enlarged: Encoder, encoder: Encoder) -> None:
    assert enlarged.num_embeddings == NEW_ID
    assert encoder.num_embeddings is None


async def test_the_input_is_named_and_others_are_answered(card: Card) -> None:
    app = create_app(
        Settings(models_dir=card.folder.parent, model=[PLAIN], model_token_ids=[PLAIN])
    )
    models = app.state.services.models
    await models.load(app.state.services.metrics)
    try:
        async with client_of(app) as client:
            for inputs, said in (
                (
                    ["fine", "also fine", "what is [NEW]?"],
                    f"input[2] holds '{NEW}' (token id {NEW_ID})",
                ),
                ("what is [NEW]?", f"input holds '{NEW}' (token id {NEW_ID})"),
                (["what is [NEW]?"], f"input[0] holds '{NEW}' (token id {NEW_ID})"),
                ([NEW_ID], f"input holds '{NEW}' (token id {NEW_ID})"),
                ([[7592], [NEW_ID]], f"input[1] holds '{NEW}' (token id {NEW_ID})"),
            ):
                body = {"model": PLAIN, "input": inputs}
                answer = await client.post("/v1/embeddings", json=body)
                assert answer.status_code == 400, answer.text
                error = answer.json()["error"]
                assert error["message"].startswith(said)
                assert error["type"] == "invalid_request_error"
                assert error["param"] == "input"
                assert "try" not in error["message"].lower()
            known = {"model": PLAIN, "input": [NEW_ID - 1]}
            assert (await client.post("/v1/embeddings", json=known)).status_code == 200
    finally:
        models.close()
        await asyncio.to_thread(models.join)


def test_the_line_of_a_file_is_named(card: Card, enlarged: Encoder) -> None:
    texts = ["fine", f"a {NEW} one", "fine"]
    with Embedder(card, enlarged, None, Settings()) as embedder:
        with pytest.raises(TextFileError, match=r"texts line 2 holds '\[NEW\]' \(token id 30522\)"):
            embed_sample(embedder, texts, prompt="")
        with pytest.raises(InvalidRequest, match=r"input\[1\] holds '\[NEW\]' \(token id 30522\)"):
            embedder.embed(texts)
        assert np.isfinite(embed_sample(embedder, ["fine", "as well"], prompt="")).all()
