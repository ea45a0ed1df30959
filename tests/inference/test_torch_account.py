"""Each tensor of a model's class and of its files has its place, or is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers
from transformers import MODEL_MAPPING, AutoConfig

from server.inference.safetensors_header import read_shapes
from server.inference.tensor_account import TensorAccount, UnaccountedTensors
from server.inference.torch_account import WantedTensors
from server.inference.torch_loading import account_for_tensors, quiet_transformers
from tests.conftest import PLAIN, REPOSITORY
from tests.importing.folders import DIM

OFFICIAL = REPOSITORY / "models" / PLAIN
UNUSED = {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}
Shapes = dict[str, tuple[int, ...]]
SIZES = {
    "vocab_size": 20,
    "hidden_size": DIM,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 12,
}


@pytest.fixture(scope="module")
def official() -> tuple[WantedTensors, Shapes]:
    """What BERT's class wants for all-MiniLM-L6-v2, and what the official file holds."""
    quiet_transformers()
    config = AutoConfig.from_pretrained(OFFICIAL / "config.json")
    shapes = read_shapes([OFFICIAL / "model.safetensors"])
    return WantedTensors(MODEL_MAPPING[type(config)], config), shapes


def saved(model: transformers.PreTrainedModel, place: Path) -> tuple[WantedTensors, Shapes]:
    """As `official`, of a model of any class, as the library saves it."""
    model.save_pretrained(place)
    wanted = WantedTensors(MODEL_MAPPING[type(model.config)], model.config)
    return wanted, read_shapes([place / "model.safetensors"])


def refusal(account: TensorAccount) -> str:
    with pytest.raises(UnaccountedTensors) as refused:
        account.check()
    return str(refused.value)


def test_of_the_official_file_each_tensor_is_wanted_but_for_the_three_that_nothing_uses(
    official: tuple[WantedTensors, Shapes],
) -> None:
    wanted, shapes = official
    wanted.account(shapes).check()
    assert len(shapes) == 104
    used = sorted(shapes.keys() - UNUSED)
    assert len(used) == 101
    for name in used:
        without = {other: shape for other, shape in shapes.items() if other != name}
        removed = refusal(wanted.account(without))
        assert removed.startswith(f"bert wants 1 tensor that the files lack: {name};")
        renamed = refusal(wanted.account(without | {f"wrapped.{name}": shapes[name]}))
        assert f"; the files hold 1 tensor that bert does not take: wrapped.{name};" in renamed
    for name in UNUSED:
        wanted.account({other: shapes[other] for other in shapes if other != name}).check()
    wanted.account({name: shapes[name] for name in used}).check()


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "pooler.dense.weight"])
def test_a_tensor_of_another_shape_is_refused_with_both_shapes(
    official: tuple[WantedTensors, Shapes], name: str
) -> None:
    wanted, shapes = official
    account = wanted.account(shapes | {name: (7, 384)})
    assert account.missing == ()
    expected = f"{name} [7, 384] instead of {list(shapes[name])}"
    assert f"hold 1 tensor of another shape than config.json says: {expected};" in refusal(account)


def test_unmerged_adapter_weights_beside_the_base_are_told_to_be_merged(
    official: tuple[WantedTensors, Shapes],
) -> None:
    wanted, shapes = official
    query = "encoder.layer.0.attention.self.query"
    lora: Shapes = {
        f"{query}.lora_A.default.weight": (8, 384),
        f"{query}.lora_B.default.weight": (384, 8),
    }
    said = refusal(wanted.account(shapes | lora))
    assert f"the files hold 2 tensors that bert does not take: {query}.lora_A" in said
    assert said.endswith("merge the adapter into its base first (peft: merge_and_unload)")
    wrapped = {
        name.replace(f"{query}.", f"{query}.base_layer."): shape for name, shape in shapes.items()
    }
    said = refusal(wanted.account(wrapped))
    assert f"bert wants 2 tensors that the files lack: {query}.bias, {query}.weight;" in said
    assert (
        f"2 tensors that bert does not take: {query}.base_layer.bias, {query}.base_layer.weight;"
        in said
    )


def test_a_prefix_that_the_class_does_not_know_is_refused_and_its_own_is_not(
    official: tuple[WantedTensors, Shapes],
) -> None:
    wanted, shapes = official
    wanted.account({f"bert.{name}": shape for name, shape in shapes.items()}).check()
    for prefix in ("module", "model", "bert.bert", "roberta", "encoder"):
        said = refusal(wanted.account({f"{prefix}.{name}": shapes[name] for name in shapes}))
        assert "bert wants 101 tensors that the files lack: " in said
        assert " and 96 more" in said


def test_two_names_for_one_tensor_are_refused(official: tuple[WantedTensors, Shapes]) -> None:
    """The library takes one of them and says nothing."""
    wanted, shapes = official
    name = "embeddings.word_embeddings.weight"
    said = refusal(wanted.account(shapes | {f"bert.{name}": shapes[name]}))
    assert said.startswith(f"the files hold 1 tensor under two names: bert.{name} and {name}")


def test_the_old_names_of_layer_norms_are_those_of_the_new(
    official: tuple[WantedTensors, Shapes],
) -> None:
    wanted, shapes = official
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): shape
        for name, shape in shapes.items()
    }
    assert old.keys() != shapes.keys()
    wanted.account(old).check()


BERT = transformers.BertConfig(**SIZES)
HEADS: dict[str, transformers.PreTrainedModel] = {
    "bert": lambda: transformers.BertForPreTraining(BERT),
    "xlm-roberta": lambda: transformers.XLMRobertaForMaskedLM(
        transformers.XLMRobertaConfig(**SIZES)
    ),
    "distilbert": lambda: transformers.DistilBertForMaskedLM(
        transformers.DistilBertConfig(dim=DIM, n_layers=1, n_heads=4, hidden_dim=64, vocab_size=20)
    ),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            **SIZES, pad_token_id=0, bos_token_id=1, cls_token_id=1, eos_token_id=2, sep_token_id=2
        )
    ),
    "nomic_bert": lambda: transformers.NomicBertForMaskedLM(transformers.NomicBertConfig(**SIZES)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            **SIZES, num_key_value_heads=2, head_dim=16, tie_word_embeddings=False
        )
    ),
}


@pytest.mark.parametrize("architecture", HEADS)
def test_a_checkpoint_with_a_language_models_head_is_taken(
    tmp_path: Path, architecture: str
) -> None:
    model = HEADS[architecture]()
    wanted, shapes = saved(model, tmp_path)
    heads = [name for name in shapes if DIM not in shapes[name] or 20 in shapes[name]]
    assert heads
    wanted.account(shapes).check()


def test_fused_projections_are_what_the_class_wants_in_three_parts(tmp_path: Path) -> None:
    model = transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES))
    wanted, shapes = saved(model, tmp_path)
    fused = "encoder.layers.0.attn.Wqkv.weight"
    assert shapes[fused] == (3 * DIM, DIM)
    wanted.account(shapes).check()
    without = {name: shape for name, shape in shapes.items() if name != fused}
    said = refusal(wanted.account(without))
    assert "nomic_bert wants 3 tensors that the files lack: layers.0.self_attn.k_proj" in said
    assert "layers.0.self_attn." in refusal(wanted.account(shapes | {fused: (3 * DIM, DIM + 1)}))
    biased = shapes | {"encoder.layers.0.attn.Wqkv.bias": (3 * DIM,)}
    assert "does not take: encoder.layers.0.attn.Wqkv.bias;" in refusal(wanted.account(biased))


def test_of_tied_tensors_one_is_enough_and_an_encoder_takes_no_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=20, d_model=DIM, d_kv=8, d_ff=64, num_layers=1, num_heads=4
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    shapes = read_shapes([tmp_path / "model.safetensors"])
    wanted = WantedTensors(transformers.T5EncoderModel, config)
    assert "encoder.embed_tokens.weight" not in shapes
    assert any(name.startswith("decoder.") for name in shapes)
    wanted.account(shapes).check()
    without = {name: shape for name, shape in shapes.items() if name != "shared.weight"}
    wanted.account(without | {"encoder.embed_tokens.weight": (20, DIM)}).check()
    said = refusal(wanted.account(without))
    assert "t5 wants 2 tensors that the files lack: encoder.embed_tokens.weight, shared" in said


def test_a_classifiers_head_is_not_that_of_an_embedding(tmp_path: Path) -> None:
    wanted, shapes = saved(transformers.BertForSequenceClassification(BERT), tmp_path)
    assert "2 tensors that bert does not take: classifier.bias, classifier.weight;" in refusal(
        wanted.account(shapes)
    )


def test_a_pooler_that_is_not_there_is_told_as_absent(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(BERT).save_pretrained(tmp_path)
    account = account_for_tensors(tmp_path / "config.json", [tmp_path / "model.safetensors"])
    account.check()
    assert account.absent == ("pooler.dense.bias", "pooler.dense.weight")
