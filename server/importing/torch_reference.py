"""What sentence-transformers computes for the same folder: the reference of an import.

Needs the `[torch]` extra. Runs no code of the folder and unpickles nothing. Not thread-safe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import sentence_transformers
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling

from server.errors import ImportRefused, first_line
from server.importing.folder import ModelFolder
from server.importing.head import POOLING_MODES
from server.importing.text_ends import follow_end_settings
from server.importing.tokenizer_settings import read_settings

NAME = f"sentence-transformers {sentence_transformers.__version__}"


class TorchReference:
    """A folder as sentence-transformers loads it, in float32 on the CPU.

    Args:
        max_tokens: texts are cut there, if the model itself cuts later.

    Raises:
        ImportRefused: it cannot be loaded.
    """

    name = NAME

    def __init__(self, folder: ModelFolder, max_tokens: int) -> None:
        weights = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": False}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if folder.lacks_modules:
                    self._model = _build(folder, weights)
                else:
                    self._model = SentenceTransformer(
                        str(folder.path),
                        device="cpu",
                        local_files_only=True,
                        trust_remote_code=False,
                        model_kwargs=weights,
                    )
            # transformers 5 leaves these unread where there is a tokenizer.json.
            settings = read_settings(folder.transformer_path, folder.config)
            follow_end_settings(self._model.tokenizer.backend_tokenizer, settings)
            # Its own limit stays where it can: that it is ours as well is compared, too.
            own = self._model.max_seq_length if folder.cut_as_published else folder.max_input_tokens
            self._model.max_seq_length = max_tokens if own is None else min(own, max_tokens)
        except Exception as error:  # each architecture fails in its own way
            reason = first_line(error)
            raise ImportRefused(
                f"{folder.path}: sentence-transformers cannot load it: {reason}"
            ) from error

    def embed(self, texts: Sequence[str], prompt: str) -> NDArray[np.float32]:
        """Vectors (texts, embedding_dim), float32; over-long texts are cut."""
        vectors = self._model.encode(
            list(texts),
            prompt=prompt,
            batch_size=1,  # else all are padded to the longest
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def _build(folder: ModelFolder, weights: dict[str, object]) -> SentenceTransformer:
    """What sentence-transformers makes of a folder without modules.json, with this pooling."""
    transformer = Transformer(
        str(folder.path),
        max_seq_length=folder.max_input_tokens,
        model_kwargs=weights,
        processor_kwargs={"local_files_only": True},
        # Else it would put texts through the tokenizer's chat template, if there is one.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    mode = next(theirs for theirs, ours in POOLING_MODES.items() if ours == folder.head.pooling)
    size = transformer.get_embedding_dimension()
    modules = [transformer, Pooling(size, pooling_mode=mode)]
    modules += [Normalize()] if folder.head.normalize else []
    return SentenceTransformer(modules=modules, device="cpu")
