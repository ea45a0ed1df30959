"""Adapters are merged as the papers define them, and what is not exactly that is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from server.errors import ImportRefused
from server.importing.lora import merge_lora, read_lora
from server.inference.safetensors_header import read_header

DRAW = np.random.default_rng(0)
WEIGHT = DRAW.normal(size=(6, 4)).astype(np.float32)
OTHER = DRAW.normal(size=(5, 6)).astype(np.float16)
A = DRAW.normal(size=(2, 4)).astype(np.float32)
B = DRAW.normal(size=(6, 2)).astype(np.float32)
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "org/base",
    "r": 2,
    "lora_alpha": 6,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "modules_to_save": None,
    "target_modules": ["query"],
    "use_dora": False,
}
LAYER = "encoder.layer.0.query"


def adapter(folder: Path, tensors: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config))
    if tensors is None:
        tensors = {"lora_A.weight": A, "lora_B.weight": B}
    named = {f"base_model.model.{LAYER}.{name}": value for name, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def merged(folder: Path, prefix: str = "", model_type: str = "bert") -> dict[str, Any]:
    base: dict[str, Any] = {f"{prefix}{LAYER}.weight": WEIGHT, f"{prefix}out.weight": OTHER}
    save_file(base | {"position_ids": np.arange(3)}, folder / "base.safetensors")
    into = folder / "merged.safetensors"
    merge_lora(folder, ["base.safetensors"], model_type, read_lora(folder), into)
    return load_file(into)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"query": 1}}, 0.5),
        ({"r": 8, "rank_pattern": {r"encoder\.layer\.\d+\.query": 2}}, 3.0),
        ({"alpha_pattern": {"uery": 1}}, 3.0),
    ],
)
def test_what_an_adapter_adds_is_scaled_as_its_paper_says(
    tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    found = merged(adapter(tmp_path, **config))
    expected = WEIGHT.astype(np.float64) + scale * B.astype(np.float64) @ A
    np.testing.assert_allclose(found[f"{LAYER}.weight"], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["out.weight"], OTHER.astype(np.float32))
    np.testing.assert_array_equal(found["position_ids"], np.arange(3))
    assert {value.dtype.name for value in found.values()} == {"float32", "int64"}


def test_a_prefix_on_either_side_is_passed_over(tmp_path: Path) -> None:
    assert f"bert.{LAYER}.weight" in merged(adapter(tmp_path), prefix="bert.")
    name = "base_model.model.model.encoder.layer.0.query"
    tensors = {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = merged(tmp_path)
    assert np.abs(found[f"{LAYER}.weight"] - WEIGHT).max() > 0.1


def test_weights_in_bfloat16_are_widened_before_anything_is_added(tmp_path: Path) -> None:
    adapter(tmp_path)
    narrow = np.tile(np.array([0x3F80, 0xC020], "<u2"), 12)  # 1.0 and -2.5
    header = {f"{LAYER}.weight": {"dtype": "BF16", "shape": [6, 4], "data_offsets": [0, 48]}}
    written = json.dumps(header).encode()
    content = len(written).to_bytes(8, "little") + written + narrow.tobytes()
    (tmp_path / "base.safetensors").write_bytes(content)
    into = tmp_path / "merged.safetensors"
    merge_lora(tmp_path, ["base.safetensors"], "bert", read_lora(tmp_path), into)
    expected = np.tile([1.0, -2.5], 12).reshape(6, 4) + 3 * B @ A
    np.testing.assert_allclose(load_file(into)[f"{LAYER}.weight"], expected, atol=1e-5)


def test_each_number_lies_at_a_multiple_of_its_size(tmp_path: Path) -> None:
    """What maps the file into memory wants it so; three bytes come before the floats by name."""
    folder = adapter(tmp_path)
    flags = np.array([True, False, True])
    save_file({"a": flags, f"{LAYER}.weight": WEIGHT}, folder / "base.safetensors")
    merge_lora(folder, ["base.safetensors"], "bert", read_lora(folder), folder / "merged")
    entries = read_header(folder / "merged")
    assert entries[f"{LAYER}.weight"].begin % 4 == 0
    np.testing.assert_array_equal(load_file(folder / "merged")["a"], flags)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora = True: not plain LoRA"),
        ({"modules_to_save": ["classifier"]}, r"modules_to_save = \['classifier'\]: not plain"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"lora_bias": True}, "lora_bias = True"),
        ({"what_comes_next": 1}, "what_comes_next = 1"),
        ({"r": 4}, "has the rank 2 and 2, but adapter_config.json says 4"),
        ({"lora_alpha": None}, "r and lora_alpha must be numbers"),
    ],
)
def test_other_adapters_are_refused_by_what_they_are(
    tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImportRefused, match=said):
        read_lora(adapter(tmp_path, **config))


@pytest.mark.parametrize("patterns", [{"(": 2}, ["query"], 5])
def test_patterns_that_are_none_are_refused(tmp_path: Path, patterns: Any) -> None:
    with pytest.raises(ImportRefused, match="rank_pattern must be numbers by patterns"):
        merged(adapter(tmp_path, rank_pattern=patterns))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"lora_embedding_A": A, "lora_embedding_B": B}, "not LoRA on a linear layer: .*lora_emb"),
        ({"lora_A.weight": A}, r"query \(only half\)"),
        ({"lora_A.weight": A, "lora_B.weight": B, "bias": B[:, 0]}, r"query\.bias"),
        ({"lora_A.weight": A[None], "lora_B.weight": B}, r"query\.lora_A\.weight"),
        ({}, "holds what is not LoRA on a linear layer: nothing"),
    ],
)
def test_tensors_that_are_no_lora_are_named(
    tmp_path: Path, tensors: dict[str, Any], said: str
) -> None:
    with pytest.raises(ImportRefused, match=said):
        read_lora(adapter(tmp_path, tensors))


def test_a_pickled_adapter_is_not_read(tmp_path: Path) -> None:
    (adapter(tmp_path) / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ImportRefused, match=r"adapter_model\.bin holds can run code"):
        read_lora(tmp_path)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    wide = adapter(
        tmp_path / "wide", {"lora_A.weight": DRAW.normal(size=(2, 9)), "lora_B.weight": B}
    )
    with pytest.raises(ImportRefused, match=r"shape \[6, 4\], but the adapter is for \[6, 9\]"):
        merged(wide)
    with pytest.raises(ImportRefused, match=r"the base has no weight; it was trained on another"):
        merged(adapter(tmp_path / "prefix"), prefix="other_")
    two = adapter(tmp_path / "two")
    save_file({f"{at}.{LAYER}.weight": WEIGHT for at in ("a", "b")}, two / "base.safetensors")
    with pytest.raises(
        ImportRefused, match=rf"the base has a\.{LAYER}\.weight, b\.{LAYER}\.weight"
    ):
        merge_lora(two, ["base.safetensors"], "bert", read_lora(two), two / "merged.safetensors")
    with pytest.raises(ImportRefused, match=r"layers of gpt2 are kept the other way round"):
        merged(adapter(tmp_path / "gpt"), model_type="gpt2")
