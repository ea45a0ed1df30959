"""Keys as clients meet them: 401 before anything else is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import PLAIN
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server

BODY = {"model": PLAIN, "input": "x"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    key_file: Path = tmp_path_factory.mktemp("keys") / "keys.txt"
    key_file.write_text("# one key a line\nsk-from-file\n")
    with (
        ServerProcess(
            *("--model", PLAIN, "--api-key", "sk-from-flag", "--api-key-file", str(key_file)),
        ) as running,
        httpx.Client(base_url=running.url, timeout=30) as client,
    ):
        assert "-H 'Authorization: Bearer YOUR_KEY'" in running.ready_line
        yield client


@pytest.mark.parametrize("key", ["sk-from-flag", "sk-from-file"])
@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_right_key_gets_in(guarded: httpx.Client, scheme: str, key: str) -> None:
    headers = {"Authorization": f"{scheme} {key}"}
    assert guarded.post("/v1/embeddings", json=BODY, headers=headers).status_code == 200
    assert guarded.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Basic c2s=", "sk-x"])
def test_a_missing_key_is_401(guarded: httpx.Client, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for response in (
        guarded.post("/v1/embeddings", json=BODY, headers=headers),
        guarded.get("/v1/models", headers=headers),
        guarded.get(f"/v1/models/{PLAIN}", headers=headers),
    ):
        assert response.status_code == 401
        assert response.json()["error"]["type"] == "authentication_error"
        assert response.json()["error"]["code"] is None
        assert response.headers["www-authenticate"] == "Bearer"


def test_a_wrong_key_is_401_and_not_echoed(guarded: httpx.Client) -> None:
    secret = "sk-wrong-0123456789abcdef"
    response = guarded.post(
        "/v1/embeddings", json=BODY, headers={"Authorization": f"Bearer {secret}"}
    )
    assert response.status_code == 401
    error = response.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert error["message"].startswith("Incorrect API key provided")
    assert secret not in response.text


@pytest.mark.parametrize("content", [b"not json", b"{}", b" " * (65 << 20)])
def test_401_comes_before_any_look_at_the_body(guarded: httpx.Client, content: bytes) -> None:
    assert guarded.post("/v1/embeddings", content=content).status_code == 401


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_health_needs_no_key(guarded: httpx.Client, path: str) -> None:
    assert guarded.get(path).status_code == 200
