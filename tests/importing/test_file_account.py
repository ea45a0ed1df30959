"""Shards hold what their index says, and dense layers what their configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from server.errors import ImportRefused
from server.importing.file_account import check_files
from server.importing.folder import read_folder

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
VECTOR = np.zeros(3, np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards and a dense layer; what else is read of a folder is there and small."""
    config = {"model_type": "bert", "max_position_embeddings": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").touch()
    modules = ["Transformer", "Pooling", "Dense"]
    paths = ["", "1_Pooling", "2_Dense"]
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [
                {"type": f"sentence_transformers.models.{kind}", "path": path}
                for kind, path in zip(modules, paths, strict=True)
            ]
        )
    )
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    dense = tmp_path / "2_Dense"
    dense.mkdir()
    (dense / "config.json").write_text('{"in_features": 3, "out_features": 2, "bias": true}')
    weight = np.zeros((2, 3), np.float32)
    layer = {"linear.weight": weight, "linear.bias": VECTOR[:2]}
    save_file(layer, dense / "model.safetensors")
    save_file({"a": VECTOR, "b": VECTOR}, tmp_path / FIRST)
    save_file({"c": VECTOR}, tmp_path / SECOND)
    places = {"a": FIRST, "b": FIRST, "c": SECOND}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    return tmp_path


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(ImportRefused) as refused:
        check_files(read_folder(folder))
    return refused.value.message


def test_files_that_hold_what_is_said_of_them_are_accepted(folder: Path) -> None:
    check_files(read_folder(folder))


def test_a_tensor_that_its_shard_lacks_is_named_with_the_shard(folder: Path) -> None:
    save_file({"a": VECTOR}, folder / FIRST)
    assert f"{INDEX}: names tensors that their files do not hold: b ({FIRST});" in refusal(folder)


def test_a_tensor_in_another_shard_than_the_index_says_is_named(folder: Path) -> None:
    change_json(folder / INDEX, weight_map={"a": FIRST, "b": SECOND, "c": SECOND})
    assert f"names tensors that their files do not hold: b ({SECOND});" in refusal(folder)


def test_a_tensor_that_the_index_does_not_name_is_named(folder: Path) -> None:
    save_file({"c": VECTOR, "lora_A": VECTOR}, folder / SECOND)
    said = f"{INDEX}: does not name tensors that the files hold: lora_A ({SECOND});"
    assert said in refusal(folder)


def test_a_whole_file_beside_shards_leaves_open_which_of_them_count(folder: Path) -> None:
    save_file({"a": VECTOR}, folder / "model.safetensors")
    assert f"has model.safetensors and the shards of {INDEX}" in refusal(folder)


def test_of_many_names_some_are_told_and_the_rest_counted(folder: Path) -> None:
    save_file({f"t{number}": VECTOR for number in range(9)}, folder / SECOND)
    change_json(folder / INDEX, weight_map={"a": FIRST, "b": FIRST, "t0": SECOND})
    assert f"t5 ({SECOND}) and 3 more; get" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({"extra": VECTOR}, "extra [3], linear.bias [2], linear.weight [2, 3]"),
        ({"linear.bias": None}, "linear.weight [2, 3]"),
        ({"linear.bias": VECTOR}, "linear.bias [3], linear.weight [2, 3]"),
        ({"linear.weight": None}, "linear.bias [2]"),
        ({"linear.weight": np.zeros((2, 4), np.float32)}, "linear.bias [2], linear.weight [2, 4]"),
    ],
)
def test_a_dense_layer_that_is_not_as_its_configuration_says_is_refused(
    folder: Path, change: dict[str, np.ndarray | None], held: str
) -> None:
    file = folder / "2_Dense" / "model.safetensors"
    content = {n: t for n, t in (load_file(file) | change).items() if t is not None}
    save_file(content, file)
    wanted = "but its config.json says linear.bias [2], linear.weight [2, 3]"
    assert f"2_Dense/model.safetensors: holds {held}, {wanted}" in refusal(folder)


def test_a_bias_that_the_configuration_denies_is_refused(folder: Path) -> None:
    change_json(folder / "2_Dense" / "config.json", bias=False)
    assert refusal(folder).endswith("but its config.json says linear.weight [2, 3]")


def test_a_shard_that_is_cut_off_is_named(folder: Path) -> None:
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-1])
    assert refusal(folder).endswith(f"{SECOND}: not a safetensors file: it is cut off")


QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_])
def test_weights_as_integers_are_refused(folder: Path, dtype: type) -> None:
    save_file({"a": VECTOR, "b": VECTOR.astype(dtype)}, folder / FIRST)
    assert f"{folder / FIRST}: holds weights that are no floats" in refusal(folder)
    assert "b (" in refusal(folder)


def test_weights_in_eight_bits_are_refused(folder: Path) -> None:
    header = b'{"c": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}'
    (folder / SECOND).write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    assert "c (F8_E4M3)" in refusal(folder)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_a_buffer_of_positions_must_count(
    folder: Path, prefix: str, dtype: type[np.integer[Any]]
) -> None:
    name = f"{prefix}embeddings.position_ids"
    change_json(folder / INDEX, weight_map={"a": FIRST, name: FIRST, "c": SECOND})
    counting: NDArray[Any] = np.arange(8, dtype=dtype)[None]
    save_file({"a": VECTOR, name: counting}, folder / FIRST)
    check_files(read_folder(folder))
    save_file({"a": VECTOR, name: counting + dtype(2)}, folder / FIRST)
    assert f"{name} does not count 0, 1, 2" in refusal(folder)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_labels"])
def test_more_layers_than_tensors_are_refused_before_they_are_made(folder: Path, key: str) -> None:
    change_json(folder / "config.json", **{key: 10_000_000})
    assert f"config.json: {key} is 10,000,000, and the files hold 3 tensors" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_hidden_layers": 10_000_000}, "num_hidden_layers"),
        ({"decoder_layers": 1001}, "decoder_layers"),
        ({"num_local_experts": 1e9}, "num_local_experts"),
        ({"text_config": {"num_hidden_layers": 10**30}}, "text_config.num_hidden_layers"),
    ],
)
def test_counts_that_would_take_for_ever_to_make_are_refused(
    folder: Path, change: dict[str, Any], key: str
) -> None:
    change_json(folder / "config.json", **change)
    assert f"config.json: {key} is " in refusal(folder)
