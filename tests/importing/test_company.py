"""A text's vector is its own: graphs that let its neighbours in are refused, with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from server.catalog.card import GRAPH_FILE, Card
from server.errors import ImportRefused
from server.importing.company import SIZES, companies, prove_company
from server.importing.importer import import_model
from server.importing.plan import Wishes
from server.importing.proof_texts import COMPANY_TEXTS
from server.inference import direct
from server.inference.backend import TokenIds
from server.inference.loader import Encoder

FOLDER: Any = SimpleNamespace(path=Path("folder"), weights=())


def published(place: Path, card: Card) -> tuple[Path, onnx.ModelProto]:
    """The real model's folder as of a publisher without safetensors, and its graph, to be changed."""
    (place / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(card.path(name), place / name)
    for module in ("1_Pooling", "2_Normalize"):
        (place / module).mkdir()
    (place / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds.items()]
    (place / "modules.json").write_text(json.dumps(modules))
    (place / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    return place / "onnx" / "model.onnx", onnx.load(card.path(GRAPH_FILE))


def quantise(model: onnx.ModelProto, to: Path) -> None:
    """As publishers do it; it knows MatMul, and not ONNX Runtime's own FusedMatMul."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "FusedMatMul" and node.input[1] in weights:  # transB
            transposed = numpy_helper.to_array(weights[node.input[1]]).T
            node.input[1] += "_transposed"
            model.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(transposed), node.input[1])
            )
            node.op_type, node.domain = "MatMul", ""
            del node.attribute[:]
    quantize_dynamic(
        model,
        to,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def without_mask(model: onnx.ModelProto, to: Path) -> None:
    """Attention reads padding as well; pooling leaves it out."""
    for node in model.graph.node:
        if node.op_type == "MultiHeadAttention":
            node.input[4] = ""  # key_padding_mask
    onnx.save(model, to)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (quantise, r"the graph is quantised dynamically \(DynamicQuantizeLinear\): its scales"),
        (without_mask, r"padding changes it: the graph does not heed its attention_mask"),
    ],
)
def test_a_graph_that_gives_a_text_other_vectors_among_others_is_refused_by_force_too(
    tmp_path: Path, plain_card: Card, change: Callable[[onnx.ModelProto, Path], None], reason: str
) -> None:
    graph, model = published(tmp_path / "folder", plain_card)
    change(model, graph)
    wishes = Wishes(graph="published", force=True)
    with pytest.raises(ImportRefused) as refused:
        import_model(tmp_path / "folder", tmp_path / "models", wishes, lambda line: None)
    refused.match(
        r"depends on the texts beside it: cosine 0\.\d{5} between '.*' alone and among \d"
    )
    refused.match(rf"at least 0\.9999 is needed; {reason}")
    assert not list((tmp_path / "models").iterdir())


def test_a_graph_that_was_compared_with_nothing_is_imported_and_that_is_said(
    tmp_path: Path, plain_card: Card
) -> None:
    graph, model = published(tmp_path / "folder", plain_card)
    onnx.save(model, graph)
    lines: list[str] = []
    wishes = Wishes(graph="published", pooling=None)
    card = import_model(tmp_path / "folder", tmp_path / "models", wishes, lines.append)
    assert card.parity is None
    assert "9 texts, each alone and beside up to 8 others: smallest cosine 1.0000000" in lines
    assert any("the publisher's graph was compared with nothing" in line for line in lines)


def test_every_text_keeps_every_size_of_company_and_no_order_is_another_ones() -> None:
    count = len(COMPANY_TEXTS)
    found = list(companies(count))
    assert sorted(np.concatenate(found)) == sorted([*range(count)] * len(SIZES))
    assert {len(company) for company in found} >= set(SIZES)
    whole = [tuple(company) for company in found if len(company) > count // 2]
    assert len({*whole, tuple(range(count))}) == len(whole) + 1


class Changed:
    """The encoder's forward pass, its vectors changed."""

    def __init__(
        self, encoder: Encoder, change: Callable[[Sequence[TokenIds], NDArray[np.float32]], None]
    ) -> None:
        self._backend, self._change = encoder.backends[0], change

    def forward(self, sequences: Sequence[TokenIds]) -> NDArray[np.float32]:
        vectors = self._backend.forward(sequences)
        self._change(sequences, vectors)
        return vectors


def changed(
    encoder: Encoder, change: Callable[[Sequence[TokenIds], NDArray[np.float32]], None]
) -> Any:
    return SimpleNamespace(tokenizer=encoder.tokenizer, backends=(Changed(encoder, change),))


@pytest.mark.parametrize("company", [1, 8])
@pytest.mark.parametrize(
    ("value", "what"), [(np.nan, "not finite"), (np.inf, "not finite"), (0, "all zeros")]
)
def test_a_vector_that_cannot_be_compared_is_refused_with_its_text(
    encoder: Encoder, plain_card: Card, company: int, value: float, what: str
) -> None:
    guilty = direct.tokenize(encoder.tokenizer, ["Hello, world"])[0]

    def spoil(sequences: Sequence[TokenIds], vectors: NDArray[np.float32]) -> None:
        if len(sequences) == company:
            vectors[[np.array_equal(sequence, guilty) for sequence in sequences]] = value

    with pytest.raises(ImportRefused, match=rf"the vector of 'Hello, world' is {what}"):
        prove_company(
            FOLDER, changed(encoder, spoil), plain_card.path(GRAPH_FILE), lambda line: None
        )


def test_one_text_in_one_company_is_found_and_a_cards_own_tolerance_counts(
    encoder: Encoder, plain_card: Card
) -> None:
    def turn_last(sequences: Sequence[TokenIds], vectors: NDArray[np.float32]) -> None:
        if len(sequences) == 8:
            vectors[-1, :2] += 0.02

    graph, other = plain_card.path(GRAPH_FILE), changed(encoder, turn_last)
    with pytest.raises(ImportRefused, match=r"cosine 0\.999\d\d between .* alone and among 8, "):
        prove_company(FOLDER, other, graph, lambda line: None)
    prove_company(FOLDER, other, graph, lambda line: None, least=0.999)
