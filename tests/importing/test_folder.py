from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.folder import read_folder


def test_a_folder_that_is_not_there_is_called_missing(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        read_folder(tmp_path / "absent")
    assert refused.value.message == f"{tmp_path / 'absent'} does not exist"


def test_a_name_of_the_hub_gets_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImportRefused, match=r"models pull intfloat/e5-base-v2$"):
        read_folder(Path("intfloat/e5-base-v2"))


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(ImportRefused, match=f"^{path} is not a folder$"):
        read_folder(path)
    with pytest.raises(ImportRefused, match=r"Not a directory$"):
        read_folder(path / "inner")


def test_a_folder_of_something_else_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        ImportRefused, match=r"no config\.json: not a folder of a transformer model"
    ):
        read_folder(tmp_path)


@pytest.mark.parametrize("with_graph", [True, False])
def test_pickled_weights_are_refused_unless_there_is_a_graph_to_do_without_them(
    tmp_path: Path, with_graph: bool
) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "bert", "max_position_embeddings": 512, "hidden_size": 8}'
    )
    for name in ("tokenizer.json", "pytorch_model.bin"):
        (tmp_path / name).touch()
    if with_graph:
        (tmp_path / "onnx").mkdir()
        (tmp_path / "onnx" / "model.onnx").touch()
        assert read_folder(tmp_path, pooling="mean", normalize=True).weights == ()
    else:
        with pytest.raises(ImportRefused, match=r"weights only as pytorch_model\.bin"):
            read_folder(tmp_path, pooling="mean", normalize=True)
