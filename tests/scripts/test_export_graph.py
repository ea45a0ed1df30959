"""The graph is remade from the official folder, byte for byte, and other architectures work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PLAIN, REPOSITORY


def export(folder: Path, output: Path) -> subprocess.CompletedProcess[str]:
    script = REPOSITORY / "scripts" / "export_graph.py"
    return subprocess.run(
        [sys.executable, str(script), str(folder), "-o", str(output)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_committed_graph_comes_from_the_official_folder(
    official_folder: Path, tmp_path: Path
) -> None:
    made = export(official_folder, tmp_path / "graph.onnx")
    assert made.returncode == 0, made.stderr
    committed = REPOSITORY / "models" / PLAIN / "graph.onnx"
    assert (tmp_path / "graph.onnx").read_bytes() == committed.read_bytes()
    assert len(committed.read_bytes()) < 100_000


@pytest.fixture
def tiny_bert(tmp_path: Path, official_folder: Path) -> Path:
    """A random BERT with CLS pooling and no normalisation."""
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    folder = tmp_path / "tiny"
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(official_folder / name, folder / name)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": f"{KINDS}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{KINDS}.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    write_pooling(folder, pooling_mode_cls_token=True)
    return folder


KINDS = "sentence_transformers.models"


def write_pooling(folder: Path, **modes: Any) -> None:
    config = {"word_embedding_dimension": 48, "pooling_mode_mean_tokens": False, **modes}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


def test_another_folder_is_exported_and_checked_against_sentence_transformers(
    tiny_bert: Path,
) -> None:
    made = export(tiny_bert, tiny_bert / "graph.onnx")
    assert made.returncode == 0, made.stderr
    assert "pooling cls, not normalised" in made.stdout
    assert "smallest cosine 1.0000000" in made.stdout


def test_what_it_cannot_export_is_refused_in_one_line(tiny_bert: Path) -> None:
    write_pooling(tiny_bert, pooling_mode_max_tokens=True)
    refused = export(tiny_bert, tiny_bert / "graph.onnx")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "pooling is max" in line
    assert not (tiny_bert / "graph.onnx").exists()
