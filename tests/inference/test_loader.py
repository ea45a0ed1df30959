from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.catalog.card import GRAPH_FILE, Card, Dtype, FilePin
from server.catalog.verify import check_files
from server.errors import ModelFileError, ModelLoadError
from server.inference.loader import Encoder, load_encoder, load_rotation
from server.inference.onnx_backend import OnnxBackend
from server.inference.placement import Placement
from tests.conftest import PLAIN


def copy_of(card: Card, folder: Path) -> Card:
    """The model's files in a folder that may be damaged."""
    for name in card.files:
        shutil.copy(card.path(name), folder / name)
    return card.model_copy(update={"folder": folder})


def repinned(card: Card) -> Card:
    """The card with the hashes that its files have now."""
    import hashlib

    pins = {}
    for name in card.files:
        content = card.path(name).read_bytes()
        pins[name] = FilePin(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return card.model_copy(update={"files": pins})


def test_the_default_model_computes_unit_vectors(encoder: Encoder) -> None:
    texts = [np.array([101, 7592, 102], np.int32), np.array([101, 7592, 2088, 102], np.int32)]
    vectors = encoder.backends[0].forward(texts)
    assert vectors.shape == (2, encoder.embedding_dim) == (2, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_padding_does_not_reach_the_vector(encoder: Encoder) -> None:
    ids = np.array([101, 7592, 2088, 102], np.int32)
    alone = encoder.backends[0].forward([ids])
    padded = encoder.backends[0].forward([ids, *[np.full(204, 2003, np.int32)] * 3])
    np.testing.assert_allclose(padded[0], alone[0], atol=1e-6)


@pytest.mark.parametrize("file", ["graph.onnx", "model.safetensors", "tokenizer.json"])
def test_one_changed_byte_in_any_file_is_refused(
    plain_card: Card, tmp_path: Path, file: str
) -> None:
    card = copy_of(plain_card, tmp_path)
    with card.path(file).open("r+b") as opened:
        opened.seek(-1000, 2)
        byte = opened.read(1)
        opened.seek(-1000, 2)
        opened.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ModelFileError, match=file.replace(".", r"\.")):
        load_encoder(card)


def test_a_changed_byte_is_not_looked_for_if_hashing_is_off(
    plain_card: Card, tmp_path: Path
) -> None:
    card = copy_of(plain_card, tmp_path)
    with card.path("model.safetensors").open("r+b") as opened:
        opened.seek(-1000, 2)
        byte = opened.read(1)
        opened.seek(-1000, 2)
        opened.write(bytes([byte[0] ^ 1]))
    assert load_encoder(card, hash_files=False).embedding_dim == 384


@pytest.mark.parametrize("file", ["graph.onnx", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("size", [None, 0, 1000])
def test_a_file_that_is_absent_or_cut_off_is_named_also_if_hashing_is_off(
    plain_card: Card, tmp_path: Path, file: str, size: int | None
) -> None:
    card = copy_of(plain_card, tmp_path)
    content = card.path(file).read_bytes()
    card.path(file).unlink()
    if size is not None:
        card.path(file).write_bytes(content[:size])
    with pytest.raises(ModelLoadError, match=re.escape(str(tmp_path))):
        load_encoder(card, hash_files=False)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors"])
def test_a_rotation_that_is_absent_or_cut_off_is_named_also_if_hashing_is_off(
    matryoshka_card: Card, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "rotation.safetensors").write_bytes(content)
    card = matryoshka_card.model_copy(update={"folder": tmp_path})
    with pytest.raises(ModelLoadError, match=re.escape(str(tmp_path / "rotation.safetensors"))):
        load_rotation(card, hash_files=False)


def test_a_changed_rotation_is_refused_unless_hashing_is_off(
    matryoshka_card: Card, tmp_path: Path
) -> None:
    save_file({"rotation": np.eye(384, dtype=np.float32)}, tmp_path / "rotation.safetensors")
    card = matryoshka_card.model_copy(update={"folder": tmp_path})
    with pytest.raises(ModelFileError, match=r"rotation\.safetensors has"):
        load_rotation(card)
    assert load_rotation(card, hash_files=False) is not None


def test_a_graph_that_is_none_is_named(plain_card: Card, tmp_path: Path) -> None:
    card = copy_of(plain_card, tmp_path)
    card.path("graph.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelLoadError, match=r"graph\.onnx"):
        load_encoder(repinned(card))


@pytest.mark.parametrize("dtype", [None, "int8"])
def test_a_graph_that_no_card_vouches_for_is_not_computed(
    plain_card: Card, dtype: Dtype | None
) -> None:
    """It lies beside the card; and int8 that a card cannot have is not float32 in its place."""
    named = {name: pin for name, pin in plain_card.files.items() if name != GRAPH_FILE}
    card = plain_card.changed(files=named)
    with pytest.raises(ModelLoadError, match=f"model {PLAIN}: its card names no graph.onnx"):
        load_encoder(card, Placement(dtype=dtype))


def test_a_card_with_another_size_than_the_graph_is_refused(plain_card: Card) -> None:
    with pytest.raises(ModelLoadError, match="384 dimensions, the card says 512"):
        load_encoder(plain_card.model_copy(update={"embedding_dim": 512}))


def test_a_card_that_cannot_be_computed_on_a_gpu_is_computed_on_the_cpu_and_the_log_says_so(
    plain_card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    facts = {name: getattr(plain_card, name) for name in Card.model_fields}
    card = Card.model_construct(**facts | {"torch": None})
    encoder = load_encoder(card, Placement(("cuda:0",)), hash_files=False)
    assert isinstance(encoder.backends[0], OnnxBackend)
    assert "no [torch] table" in caplog.text


def test_the_rotation_is_orthogonal(matryoshka_card: Card) -> None:
    check_files(matryoshka_card)
    rotation = load_rotation(matryoshka_card)
    assert rotation is not None
    assert np.abs(rotation.T @ rotation - np.eye(384)).max() < 1e-5


def test_a_model_without_rotation_has_none(plain_card: Card) -> None:
    assert load_rotation(plain_card) is None


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"rotation": np.eye(383, dtype=np.float32)}, "no float32 tensor"),
        ({"rotation": np.eye(384, dtype=np.float64)}, "no float32 tensor"),
        ({"another": np.eye(384, dtype=np.float32)}, "no float32 tensor"),
        ({"rotation": 1.01 * np.eye(384, dtype=np.float32)}, "not orthogonal"),
    ],
)
def test_a_rotation_that_would_bend_cosines_is_refused(
    matryoshka_card: Card,
    tmp_path: Path,
    tensors: dict[str, np.ndarray[tuple[int, int], np.dtype[np.float32]]],
    complaint: str,
) -> None:
    save_file(tensors, tmp_path / "rotation.safetensors")
    card = repinned(matryoshka_card.model_copy(update={"folder": tmp_path}))
    with pytest.raises(ModelLoadError, match=complaint):
        load_rotation(card)
