"""An adapter's folder is made whole with the base that is named, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from server.errors import ImportRefused
from server.importing.adapter_folder import find_base, whole_folder
from tests.importing.test_lora import LAYER, WEIGHT, adapter

MODULES = [
    {"type": "sentence_transformers.models.Transformer", "path": ""},
    {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
]


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_json", ".json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    config = {"model_type": "bert", "whose": "base"}
    folder = write(tmp_path / "base", config_json=config, tokenizer_json={"whose": "base"})
    write(folder, modules_json=MODULES, **{"1_Pooling__config_json": {"pooling_mode": "cls"}})
    save_file({f"{LAYER}.weight": WEIGHT}, folder / "model.safetensors")
    return folder


def read_whole(path: Path, tmp_path: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """What the whole folder's files hold, and the lines that were told."""
    lines: list[str] = []
    base = find_base(path, options.pop("base", None), **options)
    with whole_folder(path, base, tmp_path / "models", lines.append) as whole:
        found: dict[str, Any] = {
            file.relative_to(whole).as_posix(): json.loads(file.read_text())
            for file in whole.rglob("*.json")
        }
        found |= {file.name: load_file(file) for file in whole.glob("*.safetensors")}
        assert whole.name == path.name
    assert not list((tmp_path / "models").glob("*/new"))
    return found, lines


def test_base_and_adapter_come_out_as_one_folder(tmp_path: Path, base: Path) -> None:
    path = adapter(tmp_path / "tuned")
    found, lines = read_whole(path, tmp_path, base=base)
    assert set(found) == {
        *("1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"),
        "tokenizer.json",
    }
    assert np.abs(found["model.safetensors"][f"{LAYER}.weight"] - WEIGHT).max() > 0.1
    merged = "LoRA of rank 2, merged in float32 into 1 of the base's matrices"
    assert lines == [
        f"base of the adapter: {base} (--base)",
        "pooling and prompts: as the base has them (modules.json)",
        f"adapter: {merged} (adapter_model.safetensors)",
    ]


def test_what_the_adapters_folder_says_goes_before_the_base(tmp_path: Path, base: Path) -> None:
    path = write(
        adapter(tmp_path / "tuned"),
        modules_json=MODULES,
        tokenizer_json={"whose": "adapter"},
        config_json={"model_type": "other"},
        **{"1_Pooling__config_json": {"pooling_mode": "mean"}},
    )
    write(base, tokenizer_config_json={"whose": "base"})
    found, _ = read_whole(path, tmp_path, base=base)
    assert found["1_Pooling/config.json"] == {"pooling_mode": "mean"}
    assert found["tokenizer.json"] == {"whose": "adapter"}
    assert "tokenizer_config.json" not in found
    assert found["config.json"]["whose"] == "base"  # whose weights they are


@pytest.mark.parametrize("said", ["base", "../base", "absolute"])
def test_the_base_is_found_where_the_adapter_says_it_is(
    tmp_path: Path, base: Path, said: str
) -> None:
    named = str(base) if said == "absolute" else said
    path = adapter(tmp_path / "tuned", base_model_name_or_path=named)
    _, lines = read_whole(path, tmp_path)
    assert lines[0].endswith("base (adapter_config.json)")
    with pytest.raises(ImportRefused, match="an adapter without its base"):
        read_whole(path, tmp_path, look_beside=False)  # it came from a hub


def test_a_base_is_neither_fetched_nor_guessed(tmp_path: Path, base: Path) -> None:
    path = adapter(tmp_path / "tuned")
    with pytest.raises(
        ImportRefused, match=r"an adapter without its base, which it calls 'org/base'; .* --base"
    ):
        read_whole(path, tmp_path)
    with pytest.raises(ImportRefused, match=r"--base: .*absent: no config\.json"):
        read_whole(path, tmp_path, base=tmp_path / "absent")
    with pytest.raises(ImportRefused, match=r"--base: .*base holds no adapter_config\.json"):
        read_whole(base, tmp_path, base=base)
    assert not (tmp_path / "models").exists() or not list((tmp_path / "models").iterdir())


def test_whole_weights_beside_an_adapter_are_refused_unless_a_person_says_more(
    tmp_path: Path, base: Path
) -> None:
    adapter(base, base_model_name_or_path="org/base")
    with pytest.raises(ImportRefused, match=r"nothing says whether they are merged; remove "):
        read_whole(base, tmp_path)
    found, _ = read_whole(base, tmp_path, base=base)
    assert np.abs(found["model.safetensors"][f"{LAYER}.weight"] - WEIGHT).max() > 0.1


def test_of_an_adapter_that_was_merged_the_weights_count(tmp_path: Path, base: Path) -> None:
    (adapter(base) / "adapter_model.safetensors").unlink()
    found, lines = read_whole(base, tmp_path)
    np.testing.assert_array_equal(found["model.safetensors"][f"{LAYER}.weight"], WEIGHT)
    assert lines == [
        "adapter: none is left beside it: the whole weights count as they are (adapter_config.json)"
    ]


def test_a_refusal_names_the_folder_that_a_person_knows(tmp_path: Path, base: Path) -> None:
    path = adapter(tmp_path / "tuned", base_model_name_or_path="base")
    with (
        pytest.raises(ImportRefused, match=f"^{path}/config\\.json: wrong$"),
        whole_folder(path, find_base(path, None), tmp_path / "models", print) as whole,
    ):
        raise ImportRefused(f"{whole / 'config.json'}: wrong")


def test_a_folder_without_an_adapter_stays_as_it_is(tmp_path: Path, base: Path) -> None:
    with whole_folder(base, None, tmp_path / "models", print) as whole:
        assert whole == base
    assert not (tmp_path / "models").exists()
