"""A model whose tokenizer panics at some texts, on a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from server.engine.request_tokenizer import INLINE_CHARS
from tests.conftest import PLAIN, REPOSITORY
from tests.panics import let_panic
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server


def test_a_panic_is_an_answer_in_the_one_shape_and_others_go_on(tmp_path: Path) -> None:
    folder = shutil.copytree(REPOSITORY / "models" / PLAIN, tmp_path / PLAIN)
    let_panic(folder / "tokenizer.json", "at emoji")
    flags = ("--model", PLAIN, "--models-dir", str(tmp_path), "--check-files", "off")
    with ServerProcess(*flags) as server, httpx.Client(base_url=server.url) as client:

        def ask(text: str) -> httpx.Response:
            return client.post("/v1/embeddings", json={"model": PLAIN, "input": ["a", text]})

        filler = "word " * 100
        for text in ("\N{GRINNING FACE}", filler * (INLINE_CHARS // 100) + "\N{GRINNING FACE}"):
            answer = ask(text)
            error = answer.json()["error"]
            assert (answer.status_code, error["type"]) == (500, "internal_server_error")
            assert error["message"].startswith("input[1]: the model's tokenizer fails on this text")
            assert ask("fine").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert "Traceback" not in server.log()
