"""Every architecture is imported and served as sentence-transformers computes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.catalog.verify import check_files
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.importing.proof_texts import PARITY_TEXTS, REFERENCE_TEXTS
from tests.importing.exports import Exports
from tests.importing.folders import DIM, MAX_TOKENS, make_folder
from tests.inference.company import differences
from tests.server_process import ServerProcess

TEXTS = [text for text in PARITY_TEXTS if len(text) < 10_000]
E5 = {"query": "query: ", "passage": "passage: "}
GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
}
IDENTITY, TANH = torch.nn.Identity, torch.nn.Tanh
# Every pooling, head and kind of prompt that the families use, and every way weights are stored.
FOLDERS: dict[str, dict[str, Any]] = {
    "bert-mean": {"architecture": "bert"},
    "bert-cls-raw": {"architecture": "bert", "pooling": "cls", "normalize": False},
    "bert-tanh": {"architecture": "bert", "dense": [(24, TANH)]},
    "bert-float16": {"architecture": "bert", "dtype": torch.float16},
    "distilbert-mean": {"architecture": "distilbert"},
    "mpnet-mean": {"architecture": "mpnet"},
    "xlm-roberta-mean": {"architecture": "xlm-roberta", "prompts": E5},
    "xlm-roberta-cls": {"architecture": "xlm-roberta", "pooling": "cls"},
    "modernbert-cls": {"architecture": "modernbert", "pooling": "cls"},
    "modernbert-mean": {
        "architecture": "modernbert",
        "prompts": {"search_query": "search_query: ", "search_document": "search_document: "},
    },
    "nomic-raw": {"architecture": "nomic_bert", "normalize": False},
    "t5-dense": {"architecture": "t5", "dense": [(96, IDENTITY)], "dense_bias": False},
    "qwen3-last": {
        "architecture": "qwen3",
        "pooling": "lasttoken",
        "prompts": {"query": "Instruct: find it\nQuery:", "document": ""},
    },
    "qwen3-bfloat16-shards": {
        "architecture": "qwen3",
        "pooling": "lasttoken",
        "dtype": torch.bfloat16,
        "shard_bytes": 60_000,
        "prompts": {"query": "Instruct: find it\nQuery:"},
        "default_prompt": "query",
    },
    "gemma3-dense": {
        "architecture": "gemma3_text",
        "dense": [(96, IDENTITY), (DIM, IDENTITY)],
        "prompts": GEMMA,
    },
}


def ignore(line: str) -> None:
    pass


pytestmark = pytest.mark.usefixtures("exports")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("folders")
    return {name: make_folder(place / name, **options) for name, options in FOLDERS.items()}


@pytest.fixture(scope="session")
def data_dir(
    folders: dict[str, Path], exports: Exports, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A data folder into which all of them were imported."""
    data = tmp_path_factory.mktemp("imported")
    for folder in folders.values():
        import_model(folder, data / "models", Wishes(), ignore)
    return data


@pytest.fixture(scope="session")
def http_to_all(data_dir: Path) -> Iterator[httpx.Client]:
    models = [flag for name in FOLDERS for flag in ("--model", name)]
    with (
        ServerProcess("--data-dir", str(data_dir), "--threads", "1", *models) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def card_of(data_dir: Path, name: str) -> Card:
    return read_card(data_dir / "models" / name, data_dir / "models")


def reference(folder: Path, prompt: str | None) -> Any:
    weights = {"dtype": torch.float32}
    model = SentenceTransformer(
        str(folder), device="cpu", local_files_only=True, model_kwargs=weights
    )
    return model.encode(TEXTS, prompt=prompt, show_progress_bar=False)


def lowest_cosine(left: Any, right: Any) -> float:
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.min(np.einsum("nd,nd->n", left, right) / lengths))


@pytest.mark.parametrize("purpose", [None, "query", "document"])
@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_served_is_what_sentence_transformers_computes(
    http_to_all: httpx.Client, folders: dict[str, Path], name: str, purpose: str | None
) -> None:
    body = {"model": name, "input": TEXTS, "truncate": True}
    body |= {"input_type": purpose} if purpose else {}
    answer = http_to_all.post("/v1/embeddings", json=body).raise_for_status().json()
    served = [entry["embedding"] for entry in answer["data"]]
    named = FOLDERS[name].get("prompts", {})
    default = FOLDERS[name].get("default_prompt")
    keys = {
        "query": ("query", "search_query"),
        "document": ("document", "passage", "search_document"),
    }
    wanted = keys[purpose] if purpose else (default,)
    prompt = next((named[key] for key in wanted if key in named), "")
    expected = reference(folders[name], prompt)
    assert np.shape(served) == expected.shape
    assert lowest_cosine(served, expected) >= 0.9999
    if not FOLDERS[name].get("normalize", True):
        assert np.abs(np.asarray(served) - expected).max() < 1e-4


def test_a_prompt_of_another_purpose_is_the_publishers(
    http_to_all: httpx.Client, folders: dict[str, Path]
) -> None:
    body = {"model": "gemma3-dense", "input": TEXTS, "truncate": True, "input_type": "clustering"}
    answer = http_to_all.post("/v1/embeddings", json=body).raise_for_status().json()
    expected = reference(folders["gemma3-dense"], GEMMA["Clustering"])
    assert lowest_cosine([entry["embedding"] for entry in answer["data"]], expected) >= 0.9999


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_kept_as_they_are_and_the_graph_only_points_at_them(
    data_dir: Path, folders: dict[str, Path], name: str
) -> None:
    card = card_of(data_dir, name)
    official = {
        path.relative_to(folders[name]): path.read_bytes()
        for path in folders[name].rglob("*.safetensors")
    }
    assert official
    for path, content in official.items():
        assert card.path(str(path)).read_bytes() == content
    graph = onnx.load(card.path("graph.onnx"), load_external_data=False)
    inside = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    pointed_at = {
        entry.value
        for tensor in graph.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert pointed_at == set(map(str, official))
    assert inside < 4096
    check_files(card)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_vector_has_the_same_bits_alone_and_in_any_company(data_dir: Path, name: str) -> None:
    graph = card_of(data_dir, name).path("graph.onnx")
    found = list(differences(graph, range(5, 150), (8, 24)))
    assert {case: by for case, by in found if by} == {}


def test_the_card_tells_what_the_folder_said(data_dir: Path) -> None:
    gemma = card_of(data_dir, "gemma3-dense")
    assert (gemma.architecture, gemma.embedding_dim) == ("gemma3_text", DIM)
    assert gemma.max_input_tokens == MAX_TOKENS
    assert gemma.prompts == GEMMA
    assert gemma.parity is not None
    assert gemma.parity.against.startswith("sentence-transformers ")
    assert gemma.parity.texts == 3 * len(PARITY_TEXTS) + len(REFERENCE_TEXTS)
    assert gemma.parity.min_cosine > 0.9999
    assert card_of(data_dir, "qwen3-bfloat16-shards").default_prompt == "query"
    assert card_of(data_dir, "qwen3-last").pooling == "last_token"
