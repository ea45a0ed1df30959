"""Folders that are laid out otherwise, or cut elsewhere, give the vectors that they should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from server.catalog.card import Card
from server.catalog.verify import check_files
from server.importing.importer import import_model
from server.importing.input_length import FAIRSEQ_POSITIONS, count_positions
from server.importing.plan import Wishes
from server.inference import direct
from server.inference.loader import load_encoder
from server.inference.torch_backend import TorchBackend
from tests.importing.exports import Exports
from tests.importing.folders import DIM, change_json, make_folder

TEXTS = ["a fox", "The quick brown fox jumps over the lazy dog. " * 9, "Zażółć gęślą jaźń"]

pytestmark = pytest.mark.usefixtures("exports")


def ignore(line: str) -> None:
    pass


def move_transformer(folder: Path) -> None:
    """As sentence-transformers before 2.0 laid a folder out."""
    place = folder / "0_Transformer"
    place.mkdir()
    kept = ("modules.json", "config_sentence_transformers.json")
    for file in [path for path in folder.iterdir() if path.is_file() and path.name not in kept]:
        file.rename(place / file.name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config.json").write_text('{"__version__": "0.3.0"}')


def vectors(card: Card) -> Any:
    return direct.embed_texts(load_encoder(card), TEXTS)


def test_a_transformer_in_a_folder_of_its_own_is_the_same_model(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "old", "bert", dense=[(24, torch.nn.Tanh)])
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    move_transformer(folder)
    change_json(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=32)
    lines: list[str] = []
    wishes = Wishes(origin=("org/old", "c" * 40))
    card = import_model(folder, tmp_path / "models", wishes, lines.append)
    np.testing.assert_allclose(vectors(card), expected, atol=1e-6)
    weights = ["0_Transformer/model.safetensors", "2_Dense/model.safetensors"]
    own = ["config.json", "graph.onnx", "reference.safetensors", "tokenizer.json"]
    assert sorted(card.files) == sorted([*weights, *own])
    assert list(card.sources[0].files) == weights
    assert "longest input: 32 tokens (0_Transformer/sentence_bert_config.json)" in lines
    check_files(card)
    assert card.torch is not None
    encoder = load_encoder(card)
    on_torch = TorchBackend(card, "cpu").forward([np.array([2, 7, 9, 3], np.int32)])
    on_onnx = encoder.backends[0].forward([np.array([2, 7, 9, 3], np.int32)])
    np.testing.assert_allclose(on_torch, on_onnx, atol=1e-6)


def test_a_graph_at_the_top_is_used_with_its_weights_beside_it(
    tmp_path: Path, exports: Exports
) -> None:
    folder = make_folder(tmp_path / "bert")
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    exports.published(folder)
    for file in (folder / "onnx").iterdir():
        file.rename(folder / file.name)
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(onnx="model.onnx"), lines.append)
    assert "using the publisher's model.onnx" in lines
    assert "model.onnx.data" in card.files
    np.testing.assert_allclose(vectors(card), expected, atol=1e-6)
    shutil.copyfile(folder / "model.onnx", folder / "model_O2.onnx")
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match=r"several ONNX graphs, .*: model\.onnx, model_O2\.onnx; "):
        import_model(folder, tmp_path / "models", Wishes(replace=True), ignore)


def test_robertas_table_has_two_rows_that_no_token_reads(tmp_path: Path) -> None:
    """Of 66 positions 64 are for tokens, though the folder says 66."""
    folder = make_folder(tmp_path / "roberta", "xlm-roberta")
    change_json(folder / "sentence_bert_config.json", max_seq_length=66)
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert card.max_input_tokens == 64
    assert (
        "longest input: 64 tokens (config.json; sentence_bert_config.json says 66, but the first 2 "
        "of 66 positions are not for tokens)"
    ) in lines
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    (folder / "sentence_bert_config.json").unlink()
    for file in ("tokenizer_config.json", "tokenizer.json"):
        change_json(folder / file, model_max_length=None, truncation=None)
    again = import_model(folder, tmp_path / "models", Wishes(replace=True), ignore)
    assert again.max_input_tokens == 64


def test_a_person_says_where_texts_are_cut(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "bert")
    models, lines = tmp_path / "models", list[str]()
    own = import_model(folder, models, Wishes(), ignore)
    cards = [
        import_model(folder, models, Wishes(max_input_tokens=n, replace=True), lines.append)
        for n in (16, 64)
    ]
    assert [card.max_input_tokens for card in (own, *cards)] == [32, 16, 64]
    assert len({card.fingerprint for card in (own, *cards)}) == 3
    assert "longest input: 16 tokens (--max-input-tokens)" in lines
    for card in cards:
        assert card.parity is not None
        assert card.parity.min_cosine > 0.9999
    with pytest.raises(Exception, match="--max-input-tokens 65: the model has positions for 64"):
        import_model(folder, models, Wishes(max_input_tokens=65, replace=True), ignore)


def test_an_adapter_is_merged_into_the_base_that_lies_beside_it(tmp_path: Path) -> None:
    """Against torch, which adds each layer's B(A(x)) to what the base's layer gives."""
    base = make_folder(tmp_path / "base", "bert", dtype=torch.float16)
    model = SentenceTransformer(str(base), device="cpu", model_kwargs={"dtype": torch.float32})
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.endswith(("query", "value", "dense")):
            down, up = torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4)
            stem = f"base_model.model.{name.removeprefix('0.model.')}"
            tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            layer.register_forward_hook(add_adapter(down, up, scale=8 / 4))
    assert len(tensors) > 2 * 4
    folder = tmp_path / "tuned"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    expected = model.encode(TEXTS)
    card = import_model(folder, tmp_path / "models", Wishes(), ignore)
    assert (card.name, card.description) == ("tuned", "Imported from tuned.")
    np.testing.assert_allclose(vectors(card), expected, atol=1e-5)
    unchanged = SentenceTransformer(str(base), device="cpu").encode(TEXTS)
    assert np.abs(unchanged - expected).max() > 0.05
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tuned"]


def add_adapter(down: torch.Tensor, up: torch.Tensor, *, scale: float) -> Any:
    def hook(layer: object, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + scale * torch.nn.functional.linear(inputs[0] @ down.T, up)

    return hook


@pytest.mark.parametrize("architecture", sorted(FAIRSEQ_POSITIONS - {"longformer"}))
def test_positions_reach_as_far_as_transformers_own_table(architecture: str) -> None:
    config = transformers.AutoConfig.for_model(architecture)
    sizes = {"hidden_size": DIM, "num_hidden_layers": 0, "num_attention_heads": 2, "vocab_size": 9}
    config.update({**sizes, "max_position_embeddings": 20, "languages": ["en_XX"]})
    model = transformers.AutoModel.from_config(config)
    positions = count_positions(config.to_dict())
    assert positions is not None
    assert (positions.tokens, positions.before) == (18, 2)

    def embed(tokens: int) -> object:
        return model.embeddings(torch.full((1, tokens), 5))

    embed(18)
    with pytest.raises((IndexError, RuntimeError)):
        embed(19)
