"""A transformer is read from files alone, and what they lack or have too much is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

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
        assert (found.missing, found.unexpected) == ((), ())
        stored = load_file(folder / WEIGHTS)
        for name, tensor in found.model.state_dict().items():
            assert torch.equal(tensor, stored[name].to(dtype))


def test_shards_are_read_as_one(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    names = sorted(stored)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: stored[name] for name in part}, folder / f"{number}.safetensors")
    shards = [folder / "0.safetensors", folder / "1.safetensors"]
    found = read_transformer(folder / "config.json", shards, torch.float32)
    assert (found.missing, found.unexpected) == ((), ())


def test_what_the_files_lack_and_what_nothing_takes_is_named(folder: Path) -> None:
    stored = load_file(folder / WEIGHTS)
    del stored["encoder.layer.0.output.dense.bias"]
    stored["lora_A"] = torch.zeros(2)
    save_file(stored, folder / WEIGHTS)
    found = read_transformer(folder / "config.json", [folder / WEIGHTS], torch.float32)
    assert found.missing == ("encoder.layer.0.output.dense.bias",)
    assert found.unexpected == ("lora_A",)


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
    assert found.model.config._attn_implementation == "eager"
