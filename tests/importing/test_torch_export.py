"""Before an export, files and settings are those that transformers' class reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.folder import read_folder
from server.importing.torch_export import check_tensors
from tests.importing.folders import DIM, change_json, make_folder
from tests.importing.test_own_code import NOMIC

# What nomic's own code calls the settings of the tiny model.
THEIRS = {
    "auto_map": NOMIC,
    "layer_norm_epsilon": 1e-12,
    "n_embd": DIM,
    "n_head": 4,
    "n_inner": 96,
    "n_layer": 2,
    "num_attention_heads": 4,
    "rotary_emb_base": 1000,
}


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("nomic") / "nomic", "nomic_bert")


def test_nomics_folder_with_its_auto_map_is_accepted(nomic: Path) -> None:
    change_json(nomic / "config.json", **THEIRS)
    check_tensors(read_folder(nomic))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("n_head", 6, "num_attention_heads, which is 4; write num_attention_heads = 6 beside it"),
        ("rotary_emb_base", 10_000, "rope_parameters.rope_theta, which is 1000.0; write"),
        ("layer_norm_epsilon", 1e-5, "layer_norm_eps, which is 1e-12; write"),
    ],
)
def test_a_setting_that_the_class_would_not_read_is_refused(
    nomic: Path, key: str, value: Any, said: str
) -> None:
    """No tensor's shape tells of these, and the class would compute with its own defaults."""
    change_json(nomic / "config.json", **THEIRS | {key: value})
    folder = read_folder(nomic)
    expected = rf"config\.json: {key} = {value}, but transformers' class reads {said}"
    with pytest.raises(ImportRefused, match=expected):
        check_tensors(folder)


@pytest.mark.parametrize("said", [{}, {"hidden_act": "gelu"}])
def test_a_setting_in_another_architectures_spelling_is_refused_unless_its_own_is_there(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "bert", "bert")
    change_json(folder / "config.json", hidden_act=None, activation_function="gelu_new")
    change_json(folder / "config.json", **said)
    if said:
        check_tensors(read_folder(folder))
        return
    expected = "activation_function = gelu_new, but transformers' class reads hidden_act, which is"
    with pytest.raises(ImportRefused, match=expected):
        check_tensors(read_folder(folder))


def test_a_config_that_the_class_cannot_read_is_refused_in_one_line(nomic: Path) -> None:
    change_json(nomic / "config.json", **THEIRS | {"num_attention_heads": "four"})
    folder = read_folder(nomic)
    said = r"config\.json: transformers makes no model of it: \w+: .*num_attention_heads.*'four'"
    with pytest.raises(ImportRefused, match=said):
        check_tensors(folder)
