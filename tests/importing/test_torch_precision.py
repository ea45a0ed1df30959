"""Which dtype a GPU is to compute in, by what the import has seen."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import Card
from server.importing import torch_precision
from server.importing.torch_precision import try_dtypes
from server.inference.backend import Layout
from server.inference.loader import Encoder

EXPECTED = np.eye(4, dtype=np.float32)[:1].repeat(3, axis=0)


def turned(cosine: float) -> NDArray[np.float32]:
    vectors = cosine * EXPECTED
    vectors[:, 1] = np.sqrt(1 - cosine**2)
    return vectors


@pytest.mark.parametrize(
    ("trained_in", "float16", "bfloat16", "chosen"),
    [
        ("None", 0.999999, 0.99992, "float16"),
        ("float16", 0.99992, 0.999999, "float16"),
        ("None", np.nan, 0.99992, "bfloat16"),
        ("None", 0.9998, 0.9998, "float32"),
        ("bfloat16", 0.999999, 0.9995, "bfloat16"),
        ("bfloat16", 0.999999, 0.677, "float16"),
        ("bfloat16", np.nan, 0.677, "float32"),
    ],
)
def test_the_nearest_dtype_or_the_one_it_was_trained_in_is_chosen(
    plain_card: Card,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
    trained_in: str,
    float16: float,
    bfloat16: float,
    chosen: str,
) -> None:
    cosines = {"float32": 1.0, "float16": float16, "bfloat16": bfloat16}

    def backend(card: Card, device: str) -> Any:
        return SimpleNamespace(
            layout=Layout.PADDED if card.dtype == "bfloat16" else Layout.PACKED, dtype=card.dtype
        )

    def embed(asked: Encoder, texts: list[str]) -> NDArray[np.float32]:
        return turned(cosines[asked.backends[0].dtype])  # type: ignore[attr-defined]

    monkeypatch.setattr(torch_precision, "TorchBackend", backend)
    monkeypatch.setattr(torch_precision.direct, "embed_texts", embed)  # type: ignore[attr-defined]
    lines: list[str] = []
    found = try_dtypes(
        plain_card,
        encoder.tokenizer,
        ["a", "b", "c"],
        EXPECTED,
        trained_in=trained_in,
        report=lines.append,
    )
    assert found.dtype == chosen
    assert not found.packed
    told = {one.dtype for one in found.precision}
    assert told == {name for name, cosine in cosines.items() if np.isfinite(cosine)}
    assert len(lines) == 4
    assert lines[-1].startswith(f"for a GPU: {chosen} ")
