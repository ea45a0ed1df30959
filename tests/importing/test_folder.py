from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing.folder import read_folder
from server.importing.told import tell


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


def describe(folder: Path, **files: dict[str, object]) -> list[str]:
    """A folder with these JSON files and nothing else; the lines that are told of it."""
    files = {"config": {"model_type": "bert", "max_position_embeddings": 512}, **files}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").touch()
    lines: list[str] = []
    tell(read_folder(folder, pooling="mean", normalize=True).told, lines.append)
    return lines


def test_the_longest_input_and_lower_case_are_told_with_the_file_that_says_them(
    tmp_path: Path,
) -> None:
    assert describe(tmp_path) == [
        "longest input: 512 tokens (config.json)",
        "lower case: left to tokenizer.json (sentence_bert_config.json does not say it)",
    ]
    assert "longest input: 128 tokens (tokenizer_config.json)" in describe(
        tmp_path, tokenizer_config={"model_max_length": 128}
    )
    assert "longest input: 512 tokens (config.json)" in describe(
        tmp_path, tokenizer_config={"model_max_length": 1e30}
    )
    assert describe(
        tmp_path, sentence_bert_config={"max_seq_length": 8192, "do_lower_case": True}
    ) == [
        "longest input: 8,192 tokens (sentence_bert_config.json)",
        "lower case: every text, before the tokenizer (sentence_bert_config.json)",
    ]
    assert "lower case: left to tokenizer.json (sentence_bert_config.json)" in describe(
        tmp_path, sentence_bert_config={"max_seq_length": 64, "do_lower_case": False}
    )


def test_the_older_names_of_sentence_transformers_file_are_read(tmp_path: Path) -> None:
    """The name is the architecture's in folders from before sentence-transformers 2.0."""
    older: dict[str, dict[str, object]] = {
        "sentence_roberta_config": {"max_seq_length": 40, "do_lower_case": True}
    }
    assert describe(tmp_path, **older) == [
        "longest input: 40 tokens (sentence_roberta_config.json)",
        "lower case: every text, before the tokenizer (sentence_roberta_config.json)",
    ]
    newer: dict[str, dict[str, object]] = {"sentence_bert_config": {"max_seq_length": 50}}
    assert "longest input: 50 tokens (sentence_bert_config.json)" in describe(tmp_path, **newer)
