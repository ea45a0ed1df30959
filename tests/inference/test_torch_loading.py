"""A transformer is read from files alone, and what they lack or have too much is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from server.inference.tensor_account import TensorAccount, UnaccountedTensors
from server.inference.torch_account import WantedTensors
from server.inference.torch_loading import read_transformer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    return tmp_path


WEIGHTS = "model.safetensors"


def test_whole_weights_are_read_in_the_dtype_that_is_asked_for(folder: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        found = read_transformer(folder / "config.json", [folder / WEIGHTS], dtype)
        stored = load_file(folder / WEIGHTS)
        for name, tensor in found.state_dict().items():
            assert torch.equal(tensor, stored[name].to(dtype))


def test_shards_are_read_as_one(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    names = sorted(stored)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: stored[name] for name in part}, folder / f"{number}.safetensors")
    shards = [folder / "0.safetensors", folder / "1.safetensors"]
    found = read_transformer(folder / "config.json", shards, torch.float32)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in found.state_dict().items())


def test_what_the_files_lack_and_what_nothing_takes_is_named(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    del stored["encoder.layer.0.output.dense.bias"]
    stored["lora_A"] = torch.zeros(2)
    save_file(stored, folder / WEIGHTS)
    with pytest.raises(UnaccountedTensors) as refused:
        read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)
    missing, unexpected, _ = str(refused.value).split("; ")
    assert missing == ("bert wants 1 tensor that the files lack: encoder.layer.0.output.dense.bias")
    assert unexpected == "the files hold 1 tensor that bert does not take: lora_A"


def test_a_tensor_in_two_files_is_refused(folder: Path) -> None:
    shutil.copyfile(folder / WEIGHTS, folder / "again.safetensors")
    files = [folder / WEIGHTS, folder / "again.safetensors"]
    said = r"again\.safetensors: holds .*, which model\.safetensors holds too; only one can count"
    with pytest.raises(ValueError, match=said):
        read_transformer(folder / "config.json", files, torch.float32)


def test_what_may_be_absent_is_not_made_up(folder: Path) -> None:
    """A made-up number would be a vector without a word; NaN is seen wherever it is used."""
    stored = load_file(folder / WEIGHTS)
    pooler = {name for name in stored if name.startswith("pooler.")}
    save_file({name: stored[name] for name in stored.keys() - pooler}, folder / WEIGHTS)
    found = read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)
    for name in pooler:
        assert found.get_parameter(name).isnan().all()
    computed = found(input_ids=torch.tensor([[2, 5, 3]]))
    assert computed.last_hidden_state.isfinite().all()
    assert computed.pooler_output.isnan().all()


def test_what_torch_makes_up_behind_the_accounts_back_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = load_file(folder / WEIGHTS)
    del stored["encoder.layer.0.output.dense.bias"]
    save_file(stored, folder / WEIGHTS)
    monkeypatch.setattr(WantedTensors, "account", lambda *_: TensorAccount("bert"))
    with pytest.raises(UnaccountedTensors, match=r"made up tensors: encoder\.layer\.0\.output"):
        read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)


@pytest.mark.parametrize("change", [0, 1])
def test_two_names_of_one_tensor_must_hold_the_same(tmp_path: Path, change: int) -> None:
    """One of them would be left out, and nothing says which the publisher meant."""
    config = transformers.MT5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    transformers.MT5EncoderModel(config).save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    stored["encoder.embed_tokens.weight"] = stored["shared.weight"] + change
    save_file(stored, tmp_path / WEIGHTS)
    if not change:
        read_transformer(tmp_path / "config.json", [tmp_path / WEIGHTS], torch.float32)
        return
    with pytest.raises(
        UnaccountedTensors, match=r"differ: encoder\.embed_tokens\.weight and shared"
    ):
        read_transformer(tmp_path / "config.json", [tmp_path / WEIGHTS], torch.float32)


def test_quantised_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised weights are not supported"):
        read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_the_config_cannot_name_a_kernel_to_be_fetched(folder: Path, key: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: "somebody/kernel"}))
    found = read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)
    assert found.config._attn_implementation == "eager"
