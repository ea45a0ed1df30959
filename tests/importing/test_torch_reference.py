"""The reference of an import reads a text as the publisher's settings say, not as its own loader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from server.catalog.card import TOKENIZER_FILE
from server.importing import packages
from server.importing.folder import read_folder
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.importing.proof_texts import REFERENCE_TEXTS
from server.importing.torch_reference import TorchReference
from server.inference.pooling import cosines
from tests.importing.folders import change_json, make_folder

pytestmark = pytest.mark.usefixtures("exports")


def test_an_end_token_that_only_the_settings_ask_for_gives_the_publishers_vectors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the same model with a tokenizer.json that puts the token there itself."""
    monkeypatch.setattr(packages, "is_installed", lambda package: package != "transformers")
    folder = make_folder(tmp_path / "qwen", "qwen3", pooling="lasttoken")
    whole = reference_vectors(folder)
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.post_processor = None
    tokenizer.save(str(folder / TOKENIZER_FILE))
    assert cosines(whole, reference_vectors(folder)).max() < 0.99

    change_json(folder / "tokenizer_config.json", add_eos_token=True)
    np.testing.assert_array_equal(reference_vectors(folder), whole)
    lines: list[str] = []
    card = import_model(folder, tmp_path / "models", Wishes(), lines.append)
    assert card.parity is not None
    assert card.parity.min_cosine > 0.9999
    assert card.reference is not None
    stored = load_file(card.path(card.reference.file))["embeddings"]
    np.testing.assert_allclose(stored, whole, atol=1e-5)
    told = "add_eos_token = true puts '<|endoftext|>' behind each text, which tokenizer.json does"
    assert any(line.startswith(told) for line in lines)
    (shown,) = [line for line in lines if line.startswith("tokens of an empty text")]
    assert shown == "tokens of an empty text: <|endoftext|>"


def reference_vectors(folder: Path) -> NDArray[np.float32]:
    return TorchReference(read_folder(folder), 32).embed(REFERENCE_TEXTS, "")


def test_a_chat_template_of_a_folder_without_modules_does_not_change_the_reference(
    tmp_path: Path,
) -> None:
    folder = make_folder(tmp_path / "bert")
    (folder / "modules.json").unlink()
    plain = TorchReference(read_folder(folder, pooling="mean", normalize=True), 32)
    template = "{% for message in messages %}user: {{ message['content'] }}{% endfor %}"
    change_json(folder / "tokenizer_config.json", chat_template=template)
    templated = TorchReference(read_folder(folder, pooling="mean", normalize=True), 32)
    np.testing.assert_array_equal(
        templated.embed(REFERENCE_TEXTS, ""), plain.embed(REFERENCE_TEXTS, "")
    )
