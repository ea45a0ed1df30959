"""What a GPU will make of an imported model, tried on the CPU: packing, and half precision.

The same modules compute here as on a GPU, with a reference in the place of the attention kernel.
Needs the `[torch]` extra. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card, GpuDtype, Precision, TorchModel
from server.inference import direct, least_cosines
from server.inference.backend import Layout
from server.inference.loader import Encoder
from server.inference.pooling import cosines
from server.inference.tokenizer import Tokenizer
from server.inference.torch_backend import TorchBackend


@dataclass(frozen=True, slots=True)
class _Tried:
    packed: bool
    min_cosine: float  # NaN if a vector was not finite


def try_dtypes(
    card: Card,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    expected: NDArray[np.float32],
    *,
    trained_in: str,
    report: Callable[[str], None],
) -> TorchModel:
    """What a card says of torch, with `packed`, `dtype` and `precision` as measured.

    Args:
        card: its `torch` names the files; the rest of that is to be found out.
        expected: (texts, embedding_dim), float32, what the ONNX graph gives.
        trained_in: the dtype of the weights as published; a model trained in bfloat16 may need its
            range on texts that are not among these.

    Raises:
        ModelLoadError: torch cannot load it.
    """
    tried: dict[GpuDtype, _Tried] = {}
    for dtype in get_args(GpuDtype):
        backend = TorchBackend(card.computed_in(dtype), "cpu")
        found = direct.embed_texts(Encoder(tokenizer, (backend,), card.embedding_dim), texts)
        lowest = float(np.min(cosines(found, expected)))
        tried[dtype] = _Tried(backend.layout is Layout.PACKED, lowest)
        report(
            f"for a GPU, in {dtype}: smallest cosine {lowest:.7f}"
            f"{', padded' if backend.layout is Layout.PADDED else ''}"
        )
    usable: list[GpuDtype] = [
        d for d in tried if d != "float32" and tried[d].min_cosine >= least_cosines.DEFAULT_DTYPE
    ]
    if trained_in == "bfloat16" and tried["bfloat16"].min_cosine >= least_cosines.TRAINED_DTYPE:
        usable = ["bfloat16"]
    precision = tuple(
        Precision(dtype=dtype, min_cosine=round(one.min_cosine, 7))
        for dtype, one in tried.items()
        if np.isfinite(one.min_cosine)
    )
    chosen = usable[0] if usable else "float32"
    report(f"for a GPU: {chosen} (--dtype of `serve` says another)")
    assert card.torch is not None  # or TorchBackend had refused it
    return card.torch.model_copy(
        update={
            "packed": all(one.packed for one in tried.values()),
            "dtype": chosen,
            "precision": precision,
        }
    )
