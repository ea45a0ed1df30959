"""Each family's witness gives what sentence-transformers gives, and knows what it was not given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from server.catalog.card import TOKENIZER_FILE, Card
from server.errors import ImportRefused, UnknownArithmetic
from server.importing.folder import read_folder
from server.importing.proof_texts import WITNESS_TEXTS
from server.importing.torch_reference import TorchReference
from server.importing.witness.witness import Witness, lack_of
from server.inference.inputs import TextInputs
from server.inference.tokenizer import Tokenizer
from tests.importing import folders
from tests.importing.folders import DIM, change_json, make_folder

MOST = 1e-5
TOKENS = 120  # so that the farthest distances have their buckets
PROMPTS = ("", "query: ")
_T5 = {"d_model": DIM, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
_BERT = {
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": TOKENS + 2,
}
_DISTILBERT = {"dim": DIM, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}


def _model(tokenizer: Any, name: str, **config: Any) -> Any:
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, f"{name}{'EncoderModel' if name == 'T5' else 'Model'}")
    return tokenizer, lambda size: model_class(config_class(vocab_size=size, **config))


_WORD_PIECES, _ROBERTA = folders._word_pieces, folders._roberta
# Each family, in the variants that its formulas know.
MODELS = {
    "bert": _model(_WORD_PIECES, "Bert", **_BERT),
    "bert-relu": _model(_WORD_PIECES, "Bert", **_BERT, hidden_act="relu", layer_norm_eps=1e-3),
    "camembert": _model(_ROBERTA, "Camembert", **_BERT, pad_token_id=1),
    "distilbert": _model(_WORD_PIECES, "DistilBert", **_DISTILBERT),
    "mpnet": _model(_ROBERTA, "MPNet", **_BERT),
    "roberta": _model(_ROBERTA, "Roberta", **_BERT),
    "xlm-roberta": _model(_ROBERTA, "XLMRoberta", **_BERT, pad_token_id=1),
    "t5": _model(_ROBERTA, "T5", **_T5),
    "t5-gelu": _model(_ROBERTA, "T5", **_T5, feed_forward_proj="gated-gelu"),
    "t5-silu": _model(_ROBERTA, "T5", **_T5, feed_forward_proj="gated-silu"),
    **{
        name: folders.ARCHITECTURES[name]
        for name in ("modernbert", "nomic_bert", "qwen2", "qwen3", "gemma3_text")
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of each of them, whose every tensor differs from what a loader would make up."""
    place = tmp_path_factory.mktemp("witnessed")

    def make(name: str) -> Path:
        folder = place / name
        if not folder.exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setitem(folders.ARCHITECTURES, name, MODELS[name])
                patch.setattr(folders, "MAX_TOKENS", TOKENS)
                make_folder(folder, name, dense=[(24, torch.nn.Tanh)], normalize=False)
            draw = np.random.default_rng(0)
            for file in folder.rglob("*.safetensors"):
                stored = {
                    name: value + 0.2 * draw.standard_normal(value.shape).astype(np.float32)
                    for name, value in load_file(file).items()
                }
                save_file(stored, file, {"format": "pt"})
        return folder

    return make


def embed(folder: Path, prompt: str = "") -> Any:
    read = read_folder(folder)
    tokenizer = Tokenizer(folder / TOKENIZER_FILE, read.max_input_tokens)
    witness = Witness.of_folder(read)
    assert witness is not None
    texts = TextInputs(is_list=True, texts=list(WITNESS_TEXTS))
    return witness.embed(
        tokenizer.encode_texts(texts, prompt=prompt, truncate=True, max_request_tokens=10_000)
    )


def set_head(folder: Path, pooling: str, *, dense: bool, normalize: bool) -> None:
    change_json(folder / "1_Pooling" / "config.json", pooling_mode=pooling)
    known = "sentence_transformers.models."
    steps = [("Transformer", ""), ("Pooling", "1_Pooling")]
    steps += [("Dense", "2_Dense")] * dense + [("Normalize", "3_Normalize")] * normalize
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": known + kind}
        for number, (kind, path) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize("name", MODELS)
def test_every_pooling_and_prompt_is_as_sentence_transformers_computes_it(
    made: Callable[[str], Path], name: str
) -> None:
    folder, differences = made(name), []
    for pooling, dense, normalize in (
        ("mean", False, True),
        ("cls", True, True),
        ("lasttoken", False, False),
    ):
        set_head(folder, pooling, dense=dense, normalize=normalize)
        reference = TorchReference(read_folder(folder), TOKENS)
        for prompt in PROMPTS:
            theirs, ours = reference.embed(WITNESS_TEXTS, prompt), embed(folder, prompt)
            assert ours.dtype == np.float32
            assert ours.shape == theirs.shape == (len(WITNESS_TEXTS), 24 if dense else DIM)
            lengths = np.linalg.norm(theirs, axis=1, keepdims=True)
            differences.append(np.max(np.abs(ours - theirs) / lengths))
    print(f"{name}: largest difference {max(differences):.1e}")  # docs/how-to/import-checks.md
    assert max(differences) <= MOST


def test_the_real_model_is_what_sentence_transformers_computes(official_folder: Path) -> None:
    theirs = TorchReference(read_folder(official_folder), 256).embed(WITNESS_TEXTS, "")
    assert np.max(np.abs(embed(official_folder) - theirs)) <= MOST


@pytest.mark.parametrize("name", ["bert", "mpnet", "distilbert", "t5-gelu", "xlm-roberta"])
def test_a_tensor_that_is_missing_is_named(
    made: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    read = read_folder(made(name))
    witness = Witness.of_folder(read)
    assert witness is not None
    stored = load_file(read.path / "model.safetensors")
    used = [tensor for tensor in stored if not tensor.startswith("pooler.")]
    assert len(used) > 20
    (tmp_path / "2_Dense").symlink_to(read.path / "2_Dense")
    there = Witness(
        read.architecture, tmp_path, read.config, witness.weights, (), "mean", normalize=True
    )
    for missing in used:
        rest = {tensor: value for tensor, value in stored.items() if tensor != missing}
        save_file(rest, tmp_path / "model.safetensors")
        with pytest.raises(ImportRefused, match="the weights hold no ") as refused:
            there.embed([np.array([3, 4, 5])])
        assert missing in refused.value.message


def test_a_tensor_without_a_use_is_refused_but_for_those_that_no_embedding_needs(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    read = read_folder(made("bert"))
    stored = load_file(read.path / "model.safetensors")
    witness = Witness("bert", tmp_path, read.config, read.weights[:1], (), "mean", normalize=True)
    harmless = {"pooler.dense.weight": stored["encoder.layer.0.output.dense.bias"]}
    harmless["embeddings.position_ids"] = np.arange(9)
    save_file(stored | harmless, tmp_path / "model.safetensors")
    witness.embed([np.array([3, 4, 5])])
    added = "encoder.layer.2.output.dense.bias"
    save_file(stored | {added: stored[added.replace("2", "1")]}, tmp_path / "model.safetensors")
    with pytest.raises(ImportRefused, match=f"in numpy.* has no use for: {added}"):
        witness.embed([np.array([3, 4, 5])])


def test_settings_that_change_the_arithmetic_are_refused_by_name(
    made: Callable[[str], Path],
) -> None:
    read = read_folder(made("bert"))
    for key, value in (
        ("position_embedding_type", "relative_key"),
        ("hidden_act", "quick_gelu"),
        ("is_decoder", True),
    ):
        witness = Witness(
            *("bert", read.path, {**read.config, key: value}, read.transformer_weights, (), "mean"),
            normalize=True,
        )
        with pytest.raises(UnknownArithmetic, match=f"config.json: {key} is {value!r}"):
            witness.embed([np.array([3, 4, 5])])


def test_a_tokens_number_beyond_the_table_is_refused(made: Callable[[str], Path]) -> None:
    witness = Witness.of_folder(read_folder(made("bert")))
    assert witness is not None
    with pytest.raises(ImportRefused, match="none for 99999"):
        witness.embed([np.array([3, 99999])])


def test_a_card_has_a_witness_where_it_has_the_weights(plain_card: Card) -> None:
    witness = Witness.of_card(plain_card)
    assert witness is not None
    assert witness.name == "witness (bert in numpy)"
    (vector,) = witness.embed([np.array([101, 7592, 102])])
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert Witness.of_card(plain_card.changed(torch=None)) is None
    assert (
        lack_of("bert")
        == "no witness: its card has no [torch] table, which names config.json and weights"
    )
    assert Witness.of_card(plain_card.changed(architecture="longformer")) is None
    assert lack_of("longformer") == "no witness for longformer"
