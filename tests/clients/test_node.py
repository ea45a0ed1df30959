"""The openai and LangChain packages of npm, unchanged, against a real server."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.server_process import ServerProcess

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def node(server: ServerProcess) -> Any:
    script = REPOSITORY / "tests" / "node" / "clients.mjs"
    run = subprocess.run(
        ["node", str(script), server.base_url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_base64_which_it_asks_for_by_itself_equals_float(node: Any) -> None:
    np.testing.assert_array_equal(
        np.array(node["standard"], np.float32), np.array(node["float"], np.float32)
    )
    assert len(node["standard"][0]) == 384


def test_its_vectors_are_those_of_plain_http(node: Any, http: httpx.Client) -> None:
    body = {"model": MATRYOSHKA, "input": ["The cat sat on the mat.", "Ein zweiter Text."]}
    answer = http.post("/v1/embeddings", json=body).json()
    rows = [row["embedding"] for row in answer["data"]]
    np.testing.assert_allclose(node["float"], rows, atol=1e-6)
    np.testing.assert_allclose(node["langchain"], rows, atol=1e-6)
    assert node["usage"] == answer["usage"]


def test_dimensions_are_honoured(node: Any) -> None:
    assert len(node["short"]) == 64
    assert np.linalg.norm(node["short"]) == pytest.approx(1, abs=1e-6)


def test_models_are_listed(node: Any) -> None:
    assert node["models"] == [MATRYOSHKA, PLAIN]


def test_an_unknown_model_is_its_not_found_error(node: Any) -> None:
    assert node["refusal"] == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
