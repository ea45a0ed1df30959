"""What modules.json and the configurations beside it say, in either spelling, or a refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.head import DenseLayer, Head, find_transformer, read_head
from server.importing.told import Told

KINDS = "sentence_transformers.models."
TANH = "torch.nn.modules.activation.Tanh"


def write(folder: Path, *modules: str, **configs: dict[str, Any]) -> Path:
    """modules.json with these modules, each in a folder of its number and kind, and configs."""
    listed = [
        {"type": KINDS + kind, "path": f"{number}_{kind}" if number else ""}
        for number, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for name, config in configs.items():
        (folder / name.lstrip("_")).mkdir(exist_ok=True)
        (folder / name.lstrip("_") / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_without_modules_says_nothing(tmp_path: Path) -> None:
    assert read_head(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, "last_token"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last_token"),
    ],
)
def test_pooling_is_read_in_both_spellings(
    tmp_path: Path, config: dict[str, Any], mode: Any
) -> None:
    write(tmp_path, "Transformer", "Pooling", _1_Pooling=config)
    assert read_head(tmp_path) == Head(mode, (), normalize=False)


def test_dense_layers_and_normalisation_come_in_their_order(tmp_path: Path) -> None:
    layer = {"in_features": 8, "out_features": 4}
    write(
        tmp_path,
        *("Transformer", "Pooling", "Dense", "Dense", "Normalize"),
        _1_Pooling={"pooling_mode": "mean"},
        _2_Dense=layer | {"activation_function": "torch.nn.modules.linear.Identity"},
        _3_Dense=layer | {"out_features": 3},
    )
    head = read_head(tmp_path)
    dense = (DenseLayer("2_Dense", "Identity", 4), DenseLayer("3_Dense", "Tanh", 3))
    assert head == Head("mean", dense, normalize=True)
    assert head is not None
    assert head.dense[0].weights == "2_Dense/model.safetensors"
    assert head.told == (
        Told("pooling", "mean", "1_Pooling/config.json"),
        Told(
            "dense layers",
            "2_Dense to 4, Identity; 3_Dense to 3, Tanh",
            "modules.json, 2_Dense/config.json, 3_Dense/config.json",
        ),
        Told("normalize", "yes", "modules.json"),
    )


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        (("Transformer",), "Transformer: only Transformer, Pooling"),
        (("Transformer", "Pooling", "Normalize", "Dense"), "only Transformer, Pooling"),
        (("Transformer", "WeightedLayerPooling", "Pooling"), "only Transformer, Pooling"),
        (("StaticEmbedding",), "StaticEmbedding: only Transformer"),
        ((), "modules.json: no modules: only Transformer"),
    ],
)
def test_other_modules_are_refused(tmp_path: Path, modules: tuple[str, ...], said: str) -> None:
    with pytest.raises(ImportRefused, match=said):
        read_head(write(tmp_path, *modules))


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    """sentence-transformers keeps them by their names, and would leave out the first."""
    file = write(tmp_path, "Transformer", "Pooling") / "modules.json"
    listed = [module | {"name": "0"} for module in json.loads(file.read_text())]
    file.write_text(json.dumps(listed))
    with pytest.raises(ImportRefused, match=r"modules\.json: two modules have the name 0"):
        read_head(tmp_path)


def test_a_module_in_the_folder_itself_has_its_config_there(tmp_path: Path) -> None:
    file = write(tmp_path, "Transformer", "Pooling") / "modules.json"
    listed = [module | {"path": ""} for module in json.loads(file.read_text())]
    file.write_text(json.dumps(listed))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ImportRefused) as refused:
        read_head(tmp_path)
    assert refused.value.message.startswith(f"{tmp_path / 'config.json'}: pooling is not set")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation_function": "os.system"}, "activation os.system is none of"),
        ({"activation_function": "torch.nn.modules.activation.Softplus"}, "is none of"),
        ({"use_residual": True}, "use_residual is not supported"),
        ({"module_input_name": "token_embeddings"}, "module_input_name 'token_embeddings'"),
        ({"out_features": 0}, "out_features must be a number"),
        ({"out_features": "4"}, "out_features must be a number"),
    ],
)
def test_a_dense_layer_that_would_be_computed_otherwise_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    layer = {"in_features": 8, "out_features": 4, "activation_function": TANH} | change
    write(
        tmp_path,
        *("Transformer", "Pooling", "Dense"),
        _1_Pooling={"pooling_mode": "mean"},
        _2_Dense=layer,
    )
    with pytest.raises(ImportRefused, match=said):
        read_head(tmp_path)


@pytest.mark.parametrize(
    ("path", "found"), [("", ""), (".", ""), ("0_Transformer", "0_Transformer"), ("a/", "a")]
)
def test_the_transformer_may_lie_in_a_folder_of_its_own(
    tmp_path: Path, path: str, found: str
) -> None:
    write(tmp_path, "Transformer", "Pooling", _1_Pooling={"pooling_mode": "mean"})
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[0]["path"] = path
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert find_transformer(tmp_path) == found
    assert read_head(tmp_path) == Head("mean", (), normalize=False)


def test_without_modules_it_lies_at_the_top(tmp_path: Path) -> None:
    assert find_transformer(tmp_path) == ""
