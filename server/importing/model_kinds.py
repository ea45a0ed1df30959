"""Models that are known to give no vector a text: told by config.json, modules.json and the README.

A folder whose modules.json pools token vectors is taken at its word. Facts from the folders that
sentence-transformers, pylate, model2vec and transformers save. Pure functions of files; any thread
may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.catalog.names import stays_below
from server.importing.folder import CONFIG_FILE
from server.importing.head import MODULES_FILE
from server.importing.json_files import is_there, read_any_json, read_json_if_there
from server.importing.prompts import PROMPTS_FILE
from server.importing.published_graph import find_graphs

_CLASSIFIERS = re.compile(
    r"\w+For(SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice|"
    r"NextSentencePrediction|SequenceScoring|Ranking|ImageClassification|AudioClassification)"
)
_MULTI_VECTOR = frozenset({"HF_ColBERT", "ConstBERT", "ColBERT", "ColPali", "ColQwen2"})
# What sentence-transformers' and pylate's modules make, by the last part of their names.
_MODULES = {
    "StaticEmbedding": "static embeddings: one fixed vector a token and no transformer",
    "WordEmbeddings": "word vectors and no transformer",
    "BoW": "a bag of words and no transformer",
    "SpladePooling": "a sparse encoder (SPLADE): weights of words",
    "MLMTransformer": "a sparse encoder (SPLADE): weights of words",
    "SparseStaticEmbedding": "a sparse encoder: weights of words",
    "SparseAutoEncoder": "a sparse encoder",
    "MultiVectorMask": "a multi-vector model (ColBERT): a vector for each token",
    "TokenPooling": "a multi-vector model (ColBERT): vectors of groups of tokens",
    "LogitScore": "a reranker: a score for a pair of texts",
    "CLIPModel": "a model of images and texts (CLIP)",
    "Router": "several models behind one name, by the kind of the input",
    "Asym": "several models behind one name, by the kind of the input",
}
# sentence-transformers' own word for it, in config_sentence_transformers.json.
_MODEL_TYPES = {
    "CrossEncoder": "a reranker (cross-encoder): a score for a pair of texts",
    "SparseEncoder": "a sparse encoder: weights of words",
    "ColBERT": "a multi-vector model (ColBERT): a vector for each token",
    "MultiVectorEncoder": "a multi-vector model (ColBERT): a vector for each token",
}
# Architectures of transformers that were tried, and the reason why they cannot be a graph.
_NOT_EXPORTABLE = {
    "longformer": "its attention in windows cannot be exported",
    "led": "its attention in windows cannot be exported",
    "xlnet": "its attention over permutations cannot be exported",
    "funnel": "its layers that drop tokens cannot be exported",
}
_README_CHARS = 20_000  # its header may list languages and figures
_INSTEAD = "choose a transformer that gives one dense vector a text"


@dataclass(frozen=True, slots=True)
class Traits:
    """What a folder tells of its model."""

    path: Path
    config: Mapping[str, Any]
    sentence_transformers: Mapping[str, Any]
    modules: tuple[str, ...]  # their types, in full
    has_graph: bool  # one of the publisher's, which needs neither transformers nor the weights

    @classmethod
    def read(cls, path: Path) -> Traits:
        """Read the folder's JSON files; absent ones tell nothing.

        Raises:
            ImportRefused: one of them is broken.
        """
        file = path / MODULES_FILE
        content = read_any_json(file) if is_there(file) else []
        modules = content if isinstance(content, list) else []
        modules = [module for module in modules if isinstance(module, dict)]
        transformer = str(modules[0].get("path", "")) if modules else ""  # an own folder, once
        place = path / transformer if stays_below(transformer) else path
        return cls(
            path=path,
            config=read_json_if_there(place / CONFIG_FILE),
            sentence_transformers=read_json_if_there(path / PROMPTS_FILE),
            modules=tuple(str(module.get("type")) for module in modules),
            has_graph=bool(find_graphs(path, transformer if place != path else "", None)),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The modules' classes without their packages."""
        return tuple(kind.rpartition(".")[2] for kind in self.modules)

    @property
    def pools(self) -> bool:
        """Whether it is published as an embedding model."""
        return "Pooling" in self.kinds

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes that were saved, as transformers calls them."""
        named = self.config.get("architectures")
        return tuple(map(str, named)) if isinstance(named, list) else ()

    @property
    def model_type(self) -> str:
        """The architecture, as transformers calls it."""
        return str(self.config.get("model_type"))


def name_model_kind(path: Path) -> str | None:
    """What a folder's model is and what to do, if it is known to give no vector a text.

    Raises:
        ImportRefused: a file that would tell it is broken.
    """
    traits = Traits.read(path)
    return next(filter(None, (kind(traits) for kind in KINDS)), None)


def _by_model_type(traits: Traits) -> str | None:
    what = _MODEL_TYPES.get(str(traits.sentence_transformers.get("model_type")))
    return f"is {what}; {_INSTEAD}" if what else None


def _by_modules(traits: Traits) -> str | None:
    if any(module.startswith("pylate.") for module in traits.modules):
        return f"is {_MODEL_TYPES['ColBERT']}; {_INSTEAD}"
    what = next((_MODULES[kind] for kind in traits.kinds if kind in _MODULES), None)
    return f"is {what}; {_INSTEAD}" if what else None


def _static(traits: Traits) -> str | None:
    if traits.model_type == "model2vec" or "StaticModel" in traits.architectures:
        return f"is {_MODULES['StaticEmbedding']} (model2vec); {_INSTEAD}"
    return None


def _multi_vector(traits: Traits) -> str | None:
    named = _MULTI_VECTOR & set(traits.architectures)
    if not traits.pools and (named or is_there(traits.path / "artifact.metadata")):
        return f"is {_MODEL_TYPES['ColBERT']}; {_INSTEAD}"
    return None


def _images_or_sound(traits: Traits) -> str | None:
    reads = [key for key in ("vision_config", "audio_config") if traits.config.get(key)]
    preprocessor = read_json_if_there(traits.path / "preprocessor_config.json")
    reads += [
        key for key in ("image_processor_type", "feature_extractor_type") if key in preprocessor
    ]
    if not reads or traits.pools:
        return None
    return f"is a model of images or sound ({traits.model_type}, {reads[0]}); {_INSTEAD}"


def _classifier(traits: Traits) -> str | None:
    named = next(filter(_CLASSIFIERS.fullmatch, traits.architectures), None)
    if traits.pools or named is None:
        return None
    labels = traits.config.get("id2label")
    one = traits.config.get("num_labels") == 1 or (isinstance(labels, dict) and len(labels) == 1)
    what = "a reranker" if one or "Rank" in named else "a classifier"
    return (
        f"is {what} ({named}): it gives scores; {_INSTEAD}. To serve its transformer's vectors all "
        "the same, save it by sentence-transformers with a Pooling (modules.json)"
    )


def _ranking_by_readme(traits: Traits) -> str | None:
    """Rerankers of decoders look like embedding models but for their README's header."""
    readme = traits.path / "README.md"
    if traits.pools or not readme.is_file():
        return None
    with readme.open(encoding="utf-8", errors="replace") as opened:
        header = opened.read(_README_CHARS).split("\n---", 1)[0]
    if re.search(r"^pipeline_tag:\s*['\"]?text-ranking\b", header, re.MULTILINE) is None:
        return None
    return f"is a reranker (its README says pipeline_tag: text-ranking); {_INSTEAD}"


def _quantised(traits: Traits) -> str | None:
    by = traits.config.get("quantization_config")
    method = by.get("quant_method", "unknown") if isinstance(by, dict) else None
    mlx = traits.config.get("quantization")
    if method is None and isinstance(mlx, dict) and "bits" in mlx:
        method = "MLX"
    if method is None or traits.has_graph:
        return None
    return (
        f"has quantised weights ({method}), which cannot be read here; import the model that they "
        "were made of"
    )


def _no_graph(traits: Traits) -> str | None:
    if traits.has_graph:
        return None
    if traits.model_type == "big_bird" and traits.config.get("attention_type") != "original_full":
        reason = "its sparse attention reads random blocks of a long text"
    elif traits.model_type in _NOT_EXPORTABLE:
        reason = _NOT_EXPORTABLE[traits.model_type]
    else:
        return None
    return (
        f"is a {traits.model_type}, which cannot be served as it was meant: {reason}; for long texts choose a "
        "model such as ModernBERT's or Qwen3's"
    )


def _text_to_text(traits: Traits) -> str | None:
    """T5's encoders are models of their own; of others the decoder would be asked."""
    generates = traits.config.get("is_encoder_decoder") is True
    if not generates or traits.pools or traits.model_type in ("t5", "mt5", "umt5"):
        return None
    return f"makes texts of texts ({traits.model_type}: encoder and decoder); {_INSTEAD}"


KINDS: tuple[Callable[[Traits], str | None], ...] = (
    _by_model_type,
    _by_modules,
    _static,
    _multi_vector,
    _images_or_sound,
    _no_graph,
    _quantised,
    _classifier,
    _ranking_by_readme,
    _text_to_text,
)
