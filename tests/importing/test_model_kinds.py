"""Models that give no vector a text are told by what their folders say of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.importing.model_kinds import name_model_kind
from tests.importing.strange_folders import POOLED, Make, model, without_weights


def saved_as(model_type: str, *modules: str) -> Make:
    """A folder of sentence-transformers that says which of its classes made it."""
    said = {"config_sentence_transformers.json": json.dumps({"model_type": model_type})}
    return model(*modules, files=said)


def of(architecture: str, *modules: str, **config: Any) -> Make:
    """A folder of transformers, saved by this class."""
    return model(*modules, architectures=[architecture], **config)


RANKING = {"README.md": "---\nlicense: mit\npipeline_tag: text-ranking\n---\n# A reranker"}
KINDS: dict[str, tuple[Make, str]] = {
    "cross-encoder": (saved_as("CrossEncoder"), "is a reranker (cross-encoder): a score for"),
    "reranker": (
        of("XLMRobertaForSequenceClassification", id2label={"0": "LABEL_0"}),
        "is a reranker (XLMRobertaForSequenceClassification): it gives scores",
    ),
    "classifier": (
        of("BertForSequenceClassification", id2label={"0": "no", "1": "yes"}),
        "is a classifier (BertForSequenceClassification): it gives scores",
    ),
    "token classifier": (of("BertForTokenClassification"), "is a classifier (BertForToken"),
    "question answering": (of("BertForQuestionAnswering"), "is a classifier (BertForQuestion"),
    "reranking decoder": (
        model(files=RANKING, architectures=["Qwen3ForCausalLM"]),
        "is a reranker (its README says pipeline_tag: text-ranking)",
    ),
    "decoder with scores": (model("Transformer", "LogitScore"), "is a reranker: a score for a pair"),
    "SPLADE": (model("MLMTransformer", "SpladePooling"), "is a sparse encoder (SPLADE)"),
    "sparse encoder": (saved_as("SparseEncoder", *POOLED), "is a sparse encoder"),
    "pylate": (
        model("Transformer", "pylate.models.Dense.Dense"),
        "is a multi-vector model (ColBERT): a vector for each token",
    ),
    "pylate by its type": (saved_as("ColBERT", "Transformer", "Dense"), "is a multi-vector model"),
    "multi-vector encoder": (model("Transformer", "MultiVectorMask"), "is a multi-vector model"),
    "ColBERT": (of("HF_ColBERT"), "is a multi-vector model (ColBERT)"),
    "ColBERT's metadata": (model(files={"artifact.metadata": "{}"}), "is a multi-vector model"),
    "model2vec": (
        model(model_type="model2vec", architectures=["StaticModel"]),
        "is static embeddings: one fixed vector a token and no transformer (model2vec)",
    ),
    "static": (model("StaticEmbedding", "Normalize"), "is static embeddings: one fixed vector"),
    "word vectors": (model("WordEmbeddings", "Pooling"), "is word vectors and no transformer"),
    "CLIP": (model("CLIPModel"), "is a model of images and texts (CLIP)"),
    "CLIP of transformers": (
        model(model_type="clip", vision_config={"layers": 2}),
        "is a model of images or sound (clip, vision_config)",
    ),
    "sound": (
        model(model_type="whisper", files={"preprocessor_config.json": '{"feature_extractor_type": "W"}'}),
        "is a model of images or sound (whisper, feature_extractor_type)",
    ),
    "router": (model("Router"), "is several models behind one name"),
    "BART": (
        of("BartForConditionalGeneration", model_type="bart", is_encoder_decoder=True),
        "makes texts of texts (bart: encoder and decoder)",
    ),
    "Longformer": (model(*POOLED, model_type="longformer"), "is a longformer, which cannot be served"),
    "BigBird": (model(model_type="big_bird"), "its sparse attention reads random blocks"),
    "GPTQ": (model(quantization_config={"quant_method": "gptq"}), "has quantised weights (gptq)"),
    "MLX": (model(quantization={"bits": 4, "group_size": 64}), "has quantised weights (MLX)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_gives_no_vector_a_text_is_named(tmp_path: Path, kind: str) -> None:
    make, said = KINDS[kind]
    found = name_model_kind(make(tmp_path))
    assert found is not None
    assert found.startswith(said) or said in found
    assert "; " in found  # and what to do


PLAIN: dict[str, Make] = {
    "encoder": model(),
    "encoder that says its class": saved_as("SentenceTransformer", *POOLED, "Normalize"),
    "masked language model": of("BertForMaskedLM"),
    "decoder": of("Qwen3ForCausalLM", model_type="qwen3"),
    "classifier's class, published with a pooling": of("BertForSequenceClassification", *POOLED),
    "T5": of("T5EncoderModel", model_type="t5", is_encoder_decoder=True),
    "BigBird with full attention": model(model_type="big_bird", attention_type="original_full"),
    "quantised beside a graph": model(
        files={"onnx/model.onnx": ""}, quantization_config={"quant_method": "gptq"}
    ),
    "no files that tell": without_weights(),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_what_can_be_an_embedding_model_is_let_pass(tmp_path: Path, kind: str) -> None:
    assert name_model_kind(PLAIN[kind](tmp_path)) is None
