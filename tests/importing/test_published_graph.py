"""Which of a publisher's graphs is taken, and what is asked for where that is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.published_graph import choose_graph, files_of_graph, find_graphs


def folder_with(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["onnx/model.onnx"], "onnx/model.onnx"),
        (["onnx/model.onnx", "onnx/model_O2.onnx", "model.onnx"], "onnx/model.onnx"),
        (["model.onnx"], "model.onnx"),
        (["onnx/model_quantized.onnx", "openvino/other.onnx"], "onnx/model_quantized.onnx"),
        (["0_Transformer/onnx/model.onnx", "a.onnx"], "0_Transformer/onnx/model.onnx"),
    ],
)
def test_the_usual_graph_is_taken_or_the_only_one(
    tmp_path: Path, names: list[str], chosen: str
) -> None:
    transformer = "0_Transformer" if chosen.startswith("0") else ""
    folder_with(tmp_path, *names)
    assert choose_graph(tmp_path, find_graphs(tmp_path, transformer, None)) == chosen


def test_of_several_the_person_says_which(tmp_path: Path) -> None:
    folder_with(tmp_path, "onnx/model_O2.onnx", "onnx/model_O3.onnx", "model.onnx")
    found = find_graphs(tmp_path, "", None)
    listed = r"onnx/model_O2\.onnx, onnx/model_O3\.onnx, model\.onnx; --onnx FILE says which$"
    with pytest.raises(ImportRefused, match=listed):
        choose_graph(tmp_path, found)
    found = find_graphs(tmp_path, "", "onnx/model_O3.onnx")
    assert choose_graph(tmp_path, found) == "onnx/model_O3.onnx"


@pytest.mark.parametrize(
    ("wished", "said"),
    [
        ("onnx/model_O4.onnx", r"onnx/model_O4\.onnx: No such file; there are model\.onnx$"),
        ("../model.onnx", r"--onnx: \.\./model\.onnx must be an \.onnx file, named from "),
        ("/etc/passwd", "must be an .onnx file"),
        ("config.json", "must be an .onnx file"),
    ],
)
def test_a_graph_that_is_not_in_the_folder_is_refused(
    tmp_path: Path, wished: str, said: str
) -> None:
    folder_with(tmp_path, "model.onnx", "config.json")
    with pytest.raises(ImportRefused, match=said):
        find_graphs(tmp_path, "", wished)


def test_a_folder_without_a_graph_has_none(tmp_path: Path) -> None:
    assert find_graphs(tmp_path, "", None) == ()
    with pytest.raises(ImportRefused, match="has no ONNX graph"):
        choose_graph(tmp_path, ())


def test_what_is_too_large_for_a_graph_goes_with_it(tmp_path: Path) -> None:
    data = ["model[1].onnx_data", "model[1].onnx.data", "model[1].onnx_data_1"]
    folder_with(
        tmp_path, "onnx/model[1].onnx", "onnx/model1.onnx_data", *(f"onnx/{n}" for n in data)
    )
    assert files_of_graph(tmp_path, "onnx/model[1].onnx") == ("model[1].onnx", *sorted(data))
