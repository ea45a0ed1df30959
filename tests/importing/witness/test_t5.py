"""What T5's folders alone can get wrong; that its vectors are right is shown beside the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from server.errors import ImportRefused
from server.importing.witness import t5
from server.importing.witness.tensors import Tensors


def test_two_tables_of_words_that_differ_are_refused_with_their_folder(tmp_path: Path) -> None:
    words = np.eye(3, 2, dtype=np.float32)
    tensors = {
        "shared.weight": words,
        "encoder.embed_tokens.weight": 2 * words,
        "encoder.block.0.layer.0.SelfAttention.q.weight": words[:2],
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"d_model": 2, "num_heads": 1, "d_kv": 2, "vocab_size": 3}
    refusal = f"^{tmp_path}: shared.weight and encoder.embed_tokens.weight are two names of one"
    with pytest.raises(ImportRefused, match=refusal):
        t5.forward(config, Tensors(tmp_path, ["model.safetensors"]), [np.array([0, 1])])
