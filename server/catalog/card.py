"""The model card: what a model is, which files it consists of, and where they come from.

It vouches for every byte the server reads (sha256 of each file) and holds all that inference needs
to know, so that nothing is guessed from file names. This is the one schema of a card: `card_file`
reads and writes it, in the order of these fields. This module knows no files, nothing of HTTP or
batching; it may be called from any thread.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.catalog.cpu_precision import CpuPrecision
from server.catalog.fingerprint import Prompted, fingerprint_of
from server.catalog.int8_recipe import Int8Recipe
from server.catalog.names import CARD_NAME, stays_below
from server.catalog.prompts import PromptTable, fault_of_names
from server.catalog.sources import HubSource, PypiSource

CARD_FILE = "card.toml"
GRAPH_FILE = "graph.onnx"
TOKENIZER_FILE = "tokenizer.json"

# What a base decides for its variants; but for int8, cards that share a session are equal in these.
ENCODER_KEYS = {"architecture", "dtype", "embedding_dim", "max_input_tokens", "normalize"}
ENCODER_KEYS |= {"int8", "pooling", "torch"}
# These are said of one card alone; a variant takes them over from no base.
OWN_KEYS = {"aliases", "base", "cpu_precision", "files", "folder", "int8", "matryoshka"}
OWN_KEYS |= {"neighbours", "parity", "quality", "reference", "sources", "torch"}

PoolingMode = Literal["mean", "cls", "last_token"]
Activation = Literal["Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"]  # of torch.nn
GpuDtype = Literal["float32", "float16", "bfloat16"]
Dtype = Literal[GpuDtype, "int8"]

_MOST = 2**63 - 1  # of TOML; the parser reads more, which Python does not write out
Count = Annotated[int, Field(ge=1, le=_MOST)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilePin(_Strict):
    """One file of a model: its exact size and content."""

    bytes: int = Field(ge=0, le=_MOST)
    sha256: Sha256


class Matryoshka(_Strict):
    """Vectors of this model may be cut to any prefix; `dimensions` are the recommended sizes."""

    dimensions: tuple[Count, ...] = Field(min_length=1)
    rotation: str | None = None  # file with an orthogonal (embedding_dim, embedding_dim) matrix
    layer_norm: bool = False  # the vector is normalised over its components before it is cut


class Quality(_Strict):
    """Measured quality at one size, against cutting the base model's vector at the same size."""

    dimensions: int
    stsb_dev_spearman: float  # times 100
    stsb_dev_spearman_plain: float  # times 100


class Parity(_Strict):
    """How far the vectors were from those of another implementation when the card was made."""

    against: str
    texts: int
    min_cosine: float
    max_difference: float


class Reference(_Strict):
    """Vectors that the model gave when the card was made, to see if a machine computes the same."""

    texts: tuple[str, ...] = Field(min_length=1)
    file: str  # safetensors with `embeddings`, (texts, embedding_dim), float32, without a prompt


class TorchDense(_Strict):
    """A dense layer behind the pooling."""

    weights: str  # safetensors with `linear.weight` (out, in) and, optionally, `linear.bias`
    activation: Activation


class Precision(_Strict):
    """How near the vectors computed in one dtype are to those in float32."""

    dtype: GpuDtype
    min_cosine: float  # over the texts of the comparison with sentence-transformers


class TorchModel(_Strict):
    """What torch needs beside the weights to compute the model, on a GPU."""

    config: str  # transformers' config.json
    weights: tuple[str, ...] = Field(min_length=1)  # of the transformer
    dense: tuple[TorchDense, ...] = ()
    packed: bool  # sequences packed without padding gave the same vectors as padded ones
    dtype: GpuDtype  # the default on a GPU
    precision: tuple[Precision, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """All files that it names."""
        return (self.config, *self.weights, *(layer.weights for layer in self.dense))


class Neighbours(_Strict):
    """How much one size keeps: shares (0 to 1) of the ten nearest neighbours at full size.

    Means over `texts` texts that nothing was fitted to; `overlap_plain` is what cutting the base
    model's vectors at the same size keeps.
    """

    dimensions: Count
    overlap: float = Field(ge=0, le=1)
    overlap_plain: float = Field(ge=0, le=1)
    texts: Count


class Card(_Strict):
    """A model card; `folder` is where its files lie. It is written in the order of these fields."""

    name: str = Field(pattern=f"^{CARD_NAME}$")
    description: str
    base: Card | None = None  # the model whose encoder this one shares
    license: str
    owned_by: str
    created: datetime.date
    architecture: str
    embedding_dim: Count
    max_input_tokens: Count
    pooling: PoolingMode
    normalize: bool
    dtype: Dtype  # in which vectors are computed; in a card's file always float32
    aliases: tuple[str, ...] = ()
    prompts: dict[str, str] = {}  # by the publisher's names
    default_prompt: str | None = None
    matryoshka: Matryoshka | None = None
    quality: tuple[Quality, ...] = ()
    parity: Parity | None = None
    reference: Reference | None = None
    files: dict[str, FilePin]
    sources: tuple[Annotated[PypiSource | HubSource, Field(discriminator="kind")], ...] = ()
    torch: TorchModel | None = None
    int8: Int8Recipe | None = None  # None: that of an empty table
    cpu_precision: tuple[CpuPrecision, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()
    folder: Path

    @model_validator(mode="after")
    def _fits_together(self) -> Card:
        if fault := fault_of_names(self.prompts):
            raise ValueError(f"prompts: {fault}")
        if self.default_prompt is not None and self.default_prompt not in self.prompts:
            raise ValueError(f"default_prompt {self.default_prompt!r} is not among the prompts")
        if self.matryoshka and max(self.matryoshka.dimensions) > self.embedding_dim:
            raise ValueError("matryoshka.dimensions exceed embedding_dim")
        if self.matryoshka and self.matryoshka.rotation not in (None, *self.files):
            raise ValueError("matryoshka.rotation is not among the files")
        if self.matryoshka and self.matryoshka.rotation and self.matryoshka.layer_norm:
            raise ValueError("matryoshka has both a rotation and a layer_norm")
        if self.reference and self.reference.file not in self.files:
            raise ValueError("reference.file is not among the files")
        for name in self.files:
            if not stays_below(name):
                raise ValueError(f"file {name!r} would lie outside the model's folder")
        return self

    @model_validator(mode="after")
    def _names_its_own_files(self) -> Card:
        named = [("sources name", name) for source in self.sources for name in source.files]
        named += [("torch names", name) for name in (self.torch.files if self.torch else ())]
        for who, name in named:
            if name not in self.files:
                raise ValueError(f"{who} {name!r}, which is not among the files")
        return self

    @property
    def encoder_card(self) -> Card:
        """The card whose graph, weights and tokenizer turn text into this model's vectors."""
        return self.base or self

    @property
    def int8_recipe(self) -> Int8Recipe:
        """How this model's encoder is computed in int8."""
        return self.encoder_card.int8 or Int8Recipe()

    @property
    def with_base(self) -> tuple[Card, ...]:
        """The cards whose files serving reads: the base, if there is one, and this one."""
        return (self.base, self) if self.base else (self,)

    @functools.cached_property
    def encoder_key(self) -> str:
        """Equal for cards whose encoders compute the same, wherever their files lie.

        Of the int8 recipe it holds what decides a vector, and only where int8 is computed in.
        """
        encoder = self.encoder_card
        rotation = encoder.matryoshka.rotation if encoder.matryoshka else None
        reference = encoder.reference.file if encoder.reference else None
        facts = encoder.model_dump(mode="json", include=ENCODER_KEYS - {"int8"})
        if encoder.dtype == "int8":
            facts["recipe"] = encoder.int8_recipe.facts
        facts["files"] = encoder.digests(rotation, reference)
        return json.dumps(facts, sort_keys=True)

    def computed_in(self, dtype: Dtype) -> Card:
        """The card as it is served by a device that computes in `dtype`; its fingerprint tells."""
        if dtype == self.dtype:
            return self
        return self.changed(dtype=dtype, base=self.base.computed_in(dtype) if self.base else None)

    def changed(self, **facts: Any) -> Card:
        """The card with other facts, and a fingerprint of its own (`model_copy` keeps the old one).

        Raises:
            pydantic.ValidationError: they are none of a card's, or do not fit together.
        """
        said = {name: getattr(self, name) for name in self.model_fields_set}
        return Card.model_validate(said | facts)

    def variant(self, own: Mapping[str, Any]) -> Card:
        """A card that shares this one's encoder and takes over what `own` does not say.

        Raises:
            pydantic.ValidationError: `own` holds what is none of a card's.
        """
        taken_over = self.model_dump(exclude=OWN_KEYS)
        return Card.model_validate(taken_over | {"files": {}} | dict(own) | {"base": self})

    @property
    def file_bytes(self) -> int:
        """Size of all files that this model is made of, its base's included."""
        return sum(pin.bytes for owner in self.with_base for pin in owner.files.values())

    def digests(self, *without: str | None) -> dict[str, str]:
        """sha256 of this card's own files by name, but for these."""
        return {name: pin.sha256 for name, pin in self.files.items() if name not in without}

    def path(self, file: str) -> Path:
        """Where one of this card's own files lies."""
        return self.folder / file

    @functools.cached_property
    def prompt_table(self) -> PromptTable:
        """What each `input_type` means to this card."""
        return PromptTable(self.name, self.prompts, self.default_prompt, self._digest)

    @property
    def created_unix_s(self) -> int:
        """Midnight UTC of `created`, in seconds since 1970."""
        midnight = datetime.time(tzinfo=datetime.UTC)
        return int(datetime.datetime.combine(self.created, midnight).timestamp())

    @property
    def fingerprint(self) -> str:
        """What two servers that give the same vectors agree in; see `PromptTable`."""
        return self.prompt_table.fingerprint

    def _digest(self, prompted: Prompted) -> str:
        encoder = self.encoder_card
        reference = encoder.reference.file if encoder.reference else None
        # torch's config says again what the graph says; both are held against the same vectors.
        config = encoder.torch.config if encoder.torch else None
        rotation = self.matryoshka.rotation if self.matryoshka else None
        return fingerprint_of(
            files=encoder.digests(reference, config),
            rotation=self.files[rotation].sha256 if rotation else None,
            layer_norm=self.matryoshka is not None and self.matryoshka.layer_norm,
            pooling=self.pooling,
            normalize=self.normalize,
            prompted=prompted,
            max_input_tokens=self.max_input_tokens,
            dtype=self.dtype,
            recipe=self.int8_recipe.facts if self.dtype == "int8" else None,
        )
