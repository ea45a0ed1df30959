"""A Hugging Face folder to an installed model: card, graph, weights, tokenizer, and the proof.

The model is put together in a workshop and moved to its place at the end, so that an import that
fails or is interrupted leaves nothing. Torch is needed only where a graph has to be made; it
is imported by the modules whose names begin with `torch_`. Knows nothing of queues, HTTP or keys.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors.numpy import save
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from server.catalog.card import (
    CARD_FILE,
    GRAPH_FILE,
    TOKENIZER_FILE,
    Card,
    PoolingMode,
)
from server.catalog.card_file import read_card, write_card
from server.catalog.names import is_card_name
from server.catalog.registry import Registry, read_registry
from server.catalog.verify import sha256_of
from server.delivery.placing import workshop
from server.errors import EmbeddingServerError, ImportRefused
from server.importing.families import Family, find_family
from server.importing.folder import CONFIG_FILE, REFERENCE_FILE, ModelFolder, read_folder
from server.inference import direct
from server.inference.loader import Encoder
from server.inference.onnx_backend import OnnxBackend
from server.inference.pooling import cosines
from server.inference.tokenizer import Tokenizer
from server.program.command_lines import install_command

MIN_COSINE = 0.9999
# The weights of a publisher's graph that are too large for its own file.
GRAPH_DATA = "model.onnx[_.]data*"
# Longest text that is compared: attention takes memory by the square of it (at 32,768 tokens, the
# limit of Qwen3-Embedding, 69 GB in float32 with 16 heads).
MAX_COMPARED_TOKENS = 2048
SPARE_BYTES = 64 * 1024 * 1024  # of disk that an import leaves free
ALIAS = re.compile(r"[^\s,]+")  # settings separate names by commas
SHOWN_TOKENS = 10  # of those that a warning names
HUB_CACHE = re.compile(r"models--(?P<organisation>.+?)--(?P<name>.+)")

REFERENCE_TEXTS = ("The quick brown fox jumps over the lazy dog.", "¿Dónde está la biblioteca? 42")
# Lengths, scripts and oddities; the last one is longer than any model reads in one go.
PARITY_TEXTS = (
    *REFERENCE_TEXTS,
    "a",
    "Hello, world",
    "HELLO, WORLD!",
    "  blanks in front, behind and   between  ",
    "line one\nline two\r\n\tindented",
    "naïve façade, Zürich, smørrebrød, Łódź",
    "敏捷的棕色狐狸跳过了懒狗。",
    "Быстрая бурая лиса перепрыгивает через ленивую собаку.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "def add(a: int, b: int) -> int:\n    return a + b  # 1 + 1 == 2",
    "👩‍💻 emoji 🎉 and symbols: ± ≤ € ½ ™ http://example.com/a?b=c&d=%20e",
    "An embedding maps a text to a vector so that texts of like meaning lie close to each other.",
    " ".join(f"Sentence {number} of a long document about cats, dogs and taxes." for number in range(60)),
    " ".join(f"word{number}" for number in range(20_000)),
)  # fmt: skip


# Without the two long ones: half precision takes its time on a CPU.
HALF_PRECISION_TEXTS = PARITY_TEXTS[:-2]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the person who imports says beside the folder."""

    name: str | None = None
    matryoshka: tuple[int, ...] = ()
    prompts: dict[Literal["query", "document"], str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    graph: Literal["own", "published"] | None = None  # None: own if torch is there
    force: bool = False  # keep a model that is not as near to sentence-transformers as it should be
    replace: bool = False  # take the place of an installed model
    origin: tuple[str, str] | None = None  # repository of the hub and commit


def import_model(
    path: Path,
    into: Path,
    wishes: Wishes,
    report: Callable[[str], None],
    *,
    beside: Path | None = None,
) -> Card:
    """Make an installed model of a folder.

    Args:
        into: the folder of installed models; made if need be.
        report: called with one line of progress at a time.
        beside: the models that came with the software; None if there are none.

    Raises:
        ImportRefused: the folder cannot be served as its publisher meant it, or its place is taken.
        CardError, ModelLoadError: what came out cannot be used.
    """
    folder = read_folder(path, pooling=wishes.pooling, normalize=wishes.normalize)
    name = choose_name(folder, wishes)
    check_free(into, name, wishes, beside)
    try:
        with workshop(into) as shop:
            made = shop.new / name
            made.mkdir(parents=True)
            _make(folder, made, name, wishes, report)
            check_free(into, name, wishes, beside)  # another import may have been faster
            shop.put_in_place([name])
    except OSError as error:
        raise ImportRefused(f"{error.filename or into}: {error.strerror or error}") from error
    return read_card(into / name, into)


def check_free(into: Path, name: str, wishes: Wishes, beside: Path | None = None) -> None:
    """See that no other model has these names, or neither could be asked for.

    Raises:
        ImportRefused: a name or alias cannot be one, or is taken.
        CardError: a card that is there already claims one of these names, and is malformed.
    """
    check_name(name)
    place = into / name
    if any(place.glob(f"*/{CARD_FILE}")):
        raise ImportRefused(f"{place} holds other models; choose another name with --name")
    if place.parent != into and (place.parent / CARD_FILE).exists():
        raise ImportRefused(f"{place.parent} is a model itself; choose another name with --name")
    if place.exists() and not wishes.replace:
        raise ImportRefused(f"model {name} is there already ({place}); --replace replaces it")
    _check_names(place, name, wishes, beside, into)


def _check_names(place: Path, name: str, wishes: Wishes, beside: Path | None, into: Path) -> None:
    for alias in wishes.aliases:
        if not ALIAS.fullmatch(alias) or not alias.isprintable():
            raise ImportRefused(f"--alias: {alias!r} is empty or holds white space or a comma")
    places = [*([beside] if beside else []), *([into] if into.is_dir() else [])]
    registry = read_registry(*places) if places else Registry(())
    for broken in registry.broken:
        if broken.folder != place and {broken.name, *broken.aliases} & {name, *wishes.aliases}:
            raise broken.error
    for card in registry.cards:
        if card.name == name:
            if card.folder != place:
                raise ImportRefused(
                    f"model {name} came with this software ({card.folder}); choose another name "
                    "with --name"
                )
            continue
        if card.base is not None and card.base.name == name:
            raise ImportRefused(f"model {card.name} is made of the {name} that is there")
        taken = {card.name, *card.aliases} & {name, *wishes.aliases}
        if taken:
            raise ImportRefused(f"{min(taken)!r} is what clients call the model {card.name}")


def check_name(name: str) -> None:
    """Raise ImportRefused if no model can have this name."""
    if not is_card_name(name):
        raise ImportRefused(
            f"{name!r} cannot be a model's name (letters, digits, '.', '_', '-', at most one '/'); "
            "choose one with --name"
        )


def choose_name(folder: ModelFolder, wishes: Wishes) -> str:
    """The name asked for, else the folder's, also of a folder in the hub client's cache.

    Raises:
        ImportRefused: it cannot be the name of a model.
    """
    cached = _hub_cache(folder)
    name = wishes.name or (cached["name"] if cached else folder.path.resolve().name)
    check_name(name)
    return name


def _known_names(folder: ModelFolder, name: str, wishes: Wishes) -> tuple[str, ...]:
    """What the model may be known by, whatever clients are to call it here."""
    cached = _hub_cache(folder)
    repository = wishes.origin[0] if wishes.origin else cached["name"] if cached else ""
    own = str(folder.config.get("_name_or_path", ""))
    return (name, repository, own, folder.path.resolve().name)


def _make(
    folder: ModelFolder, made: Path, name: str, wishes: Wishes, report: Callable[[str], None]
) -> None:
    """Write the whole model into the empty folder `made`."""
    family = find_family(_known_names(folder, name, wishes))
    _write_graph(folder, made, wishes, report)
    _write_tokenizer(folder, made)
    if _makes_own_graph(folder, wishes):  # then the weights are there as well
        shutil.copyfile(folder.path / CONFIG_FILE, made / CONFIG_FILE)
    tokenizer = Tokenizer(made / TOKENIZER_FILE, min(folder.max_input_tokens, MAX_COMPARED_TOKENS))
    head = folder.head
    backend = OnnxBackend(made / GRAPH_FILE, pooling=head.pooling, normalized=head.normalize)
    with _refusing(f"{folder.path}: the graph cannot compute"):
        embedding_dim = backend.forward([np.zeros(1, np.int32)]).shape[1]
        encoder = Encoder(tokenizer, (backend,), embedding_dim)
        reference = direct.embed_texts(encoder, REFERENCE_TEXTS)
    _tell_unknown_tokens(encoder, report)
    if head.normalize and not np.allclose(np.linalg.norm(reference, axis=1), 1, atol=1e-3):
        raise ImportRefused(
            f"{folder.path}: modules.json says Normalize, but the graph's vectors have other "
            "lengths than 1"
        )
    with _refusing(
        f"{folder.path}: a text of {tokenizer.max_input_tokens} tokens cannot be computed; "
        f"max_seq_length in sentence_bert_config.json may say less than {folder.max_input_tokens}"
    ):
        direct.embed_texts(encoder, PARITY_TEXTS[-1:])
    (made / REFERENCE_FILE).write_bytes(save({"embeddings": reference}))
    table: dict[str, Any] = {
        "name": name,
        "description": f"Imported from {'@'.join(wishes.origin or ()) or folder.path.resolve().name}.",
        **_publication(folder, wishes),
        "created": datetime.datetime.now(datetime.UTC).date(),
        "architecture": folder.architecture,
        "embedding_dim": embedding_dim,
        "max_input_tokens": folder.max_input_tokens,
        "pooling": folder.head.pooling,
        "normalize": folder.head.normalize,
        "dtype": "float32",
        "aliases": list(wishes.aliases),
    }
    prompts = _choose_prompts(folder, family, wishes, report)
    table["prompts"] = prompts
    if folder.default_prompt in prompts:
        table["default_prompt"] = folder.default_prompt
    matryoshka = _matryoshka(embedding_dim, family, wishes, report)
    if matryoshka:
        table["matryoshka"] = matryoshka
    parity = _check_parity(folder, encoder, prompts, wishes, report)
    if parity:
        table["parity"] = parity
    table["reference"] = {"texts": list(REFERENCE_TEXTS), "file": REFERENCE_FILE}
    table["files"] = _pin(made)
    if wishes.origin is not None:
        repository, commit = wishes.origin
        # Only what lies in the repository byte for byte under the same name.
        same = [*folder.weights, *([] if folder.lower_case else [TOKENIZER_FILE])]
        same = [name for name in same if name in table["files"]]
        source = {"kind": "hub", "repository": repository, "revision": commit, "files": same}
        table["sources"] = [source]
    card = Card.model_validate(table | {"folder": made})
    write_card(_described_for_torch(folder, card, encoder, report), made)


# --- the files ------------------------------------------------------------------------------------


def _write_graph(
    folder: ModelFolder, made: Path, wishes: Wishes, report: Callable[[str], None]
) -> None:
    if _makes_own_graph(folder, wishes):
        _copy(folder.path, made, folder.weights)
        report(f"making the graph ({folder.architecture}); this takes from seconds to minutes")
        from server.importing.torch_export import export_graph

        graph, placement = export_graph(folder)
        (made / GRAPH_FILE).write_bytes(graph)
        report(
            f"graph: {len(graph):,} bytes; weights: {placement.outside} tensors, "
            f"{placement.outside_bytes:,} bytes, stay in {', '.join(folder.weights)}"
        )
        return
    assert folder.graph is not None
    if folder.head.dense:
        raise ImportRefused(
            f"{folder.path}: the publisher's graph lacks the dense layers, and making another one "
            f"needs torch: {install_command('torch')}"
        )
    report(f"using the publisher's {folder.graph.relative_to(folder.path)}")
    beside = [path.name for path in sorted(folder.graph.parent.glob(GRAPH_DATA))]
    _copy(folder.graph.parent, made, (folder.graph.name, *beside))
    (made / folder.graph.name).rename(made / GRAPH_FILE)


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn whatever a graph fails with into one line; ONNX Runtime's errors share no base."""
    try:
        yield
    except EmbeddingServerError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ImportRefused(f"{what}: {reason}") from error


def _makes_own_graph(folder: ModelFolder, wishes: Wishes) -> bool:
    """Whether a graph is made; else the publisher's is used."""
    torch_is_there = is_installed("torch")
    if wishes.graph == "published" and folder.graph is None:
        raise ImportRefused(f"{folder.path}: has no onnx/model.onnx")
    can_make = torch_is_there and folder.weights
    if wishes.graph == "published" or (wishes.graph is None and folder.graph and not can_make):
        return False
    if not folder.weights:
        raise ImportRefused(f"{folder.path}: has no safetensors file to make a graph from")
    if not torch_is_there:
        raise ImportRefused(
            f"{folder.path}: has no onnx/model.onnx, and making a graph needs torch: "
            f"{install_command('torch')}"
        )
    return True


def is_installed(package: str) -> bool:
    """Whether this Python has the package; it is not imported."""
    return importlib.util.find_spec(package) is not None


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files, links resolved.

    Raises:
        ImportRefused: the disk has no room for them.
    """
    names = tuple(names)
    needed = sum((source / name).stat().st_size for name in names) + SPARE_BYTES
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ImportRefused(f"{target.parent}: {needed:,} bytes are needed and {free:,} are free")
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _write_tokenizer(folder: ModelFolder, made: Path) -> None:
    source = folder.path / TOKENIZER_FILE
    if not folder.lower_case:
        shutil.copyfile(source, made / TOKENIZER_FILE)
        return
    try:
        tokenizer = RustTokenizer.from_file(str(source))
    except Exception as error:  # the library raises bare Exception
        raise ImportRefused(f"{source}: {error}") from error
    own = tokenizer.normalizer
    tokenizer.normalizer = NormalizerSequence([Lowercase(), *([own] if own else [])])
    tokenizer.save(str(made / TOKENIZER_FILE))


def _tell_unknown_tokens(encoder: Encoder, report: Callable[[str], None]) -> None:
    """Warn of tokens that were added to the tokenizer and not to the weights."""
    tokenizer = encoder.tokenizer
    known = encoder.backends[0].count_embeddings(tokenizer.vocabulary_size)
    unknown = [i for i in range(known, tokenizer.vocabulary_size) if tokenizer.token(i)]
    if not unknown:
        return
    named = ", ".join(f"{tokenizer.token(i)!r} ({i})" for i in unknown[:SHOWN_TOKENS])
    more = f" and {len(unknown) - SHOWN_TOKENS} more" if len(unknown) > SHOWN_TOKENS else ""
    report(
        f"warning: the tokenizer knows tokens that the weights do not, and texts with one of them "
        f"will be refused: {named}{more}"
    )


def _pin(made: Path) -> dict[str, dict[str, int | str]]:
    """Size and sha256 of every file below the folder."""
    files = sorted(path for path in made.rglob("*") if path.is_file())
    return {
        path.relative_to(made).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of(path),
        }
        for path in files
    }


# --- the card -------------------------------------------------------------------------------------


def _publication(folder: ModelFolder, wishes: Wishes) -> dict[str, str]:
    """License and publisher, as far as the folder tells."""
    license_name = "unknown"
    readme = folder.path / "README.md"
    if readme.is_file():
        from huggingface_hub import metadata_load

        # What people write there is not always YAML, and decides nothing.
        with contextlib.suppress(Exception):
            found = (metadata_load(readme) or {}).get("license")
            license_name = found if isinstance(found, str) else license_name
    if wishes.origin is not None:
        publisher = wishes.origin[0].split("/")[0]
    else:
        cached = _hub_cache(folder)
        publisher = cached["organisation"] if cached else "imported"
    return {"license": license_name, "owned_by": publisher}


def _hub_cache(folder: ModelFolder) -> re.Match[str] | None:
    """Organisation and name of a folder inside the hub client's cache."""
    parts = folder.path.resolve().parts
    return next(filter(None, map(HUB_CACHE.fullmatch, parts)), None)


def _choose_prompts(
    folder: ModelFolder, family: Family | None, wishes: Wishes, report: Callable[[str], None]
) -> dict[Literal["query", "document"], str]:
    """By the person, else by the folder, else as published for the family."""
    own = {purpose: prompt for purpose, prompt in folder.prompts.items() if prompt}
    chosen = dict(own)
    if not own and family is not None and family.prompts:
        chosen = dict(family.prompts)
        report(f"prompts as published for {family.source}")
    chosen |= wishes.prompts
    return {purpose: prompt for purpose, prompt in chosen.items() if prompt}


def _matryoshka(
    embedding_dim: int, family: Family | None, wishes: Wishes, report: Callable[[str], None]
) -> dict[str, object]:
    """Sizes to which vectors may be cut; empty if none are known."""
    sizes: Sequence[int] = wishes.matryoshka
    if not sizes and family is not None and family.dimensions:
        sizes = [size for size in family.dimensions if size < embedding_dim]
        report(f"Matryoshka sizes as published for {family.source}")
    if not sizes:
        return {}
    wrong = [size for size in sizes if not 1 <= size <= embedding_dim]
    if wrong:
        raise ImportRefused(
            f"--matryoshka: {wrong[0]} is not between 1 and {embedding_dim}, the model's size"
        )
    matryoshka: dict[str, object] = {"dimensions": sorted({embedding_dim, *sizes}, reverse=True)}
    if family is not None and family.layer_norm:
        matryoshka["layer_norm"] = True
    return matryoshka


def _described_for_torch(
    folder: ModelFolder, card: Card, encoder: Encoder, report: Callable[[str], None]
) -> Card:
    """The card with what a GPU needs, if torch is here to try it."""
    if CONFIG_FILE not in card.files or not is_installed("transformers"):
        return card
    from server.importing.torch_precision import try_dtypes

    dense = folder.head.dense
    torch_model = {
        "config": CONFIG_FILE,
        "weights": [n for n in folder.weights if n not in {layer.weights for layer in dense}],
        "dense": [{"weights": layer.weights, "activation": layer.activation} for layer in dense],
        "packed": False,
        "dtype": "float32",
    }
    try:
        torch_model |= try_dtypes(
            card.changed(torch=torch_model),
            encoder.tokenizer,
            HALF_PRECISION_TEXTS,
            direct.embed_texts(encoder, HALF_PRECISION_TEXTS),
            trained_in=str(folder.config.get("dtype") or folder.config.get("torch_dtype")),
            report=report,
        )
    except Exception as error:  # the model is whole without it
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        report(f"on the CPU only: {reason}")
        return card
    return card.changed(torch=torch_model)


# --- the proof ------------------------------------------------------------------------------------


def _check_parity(
    folder: ModelFolder,
    encoder: Encoder,
    prompts: dict[Literal["query", "document"], str],
    wishes: Wishes,
    report: Callable[[str], None],
) -> dict[str, object]:
    """Compare with sentence-transformers, with every prompt; empty if that cannot be.

    Raises:
        ImportRefused: they differ too much.
    """
    if not folder.weights or not is_installed("sentence_transformers"):
        missing = "safetensors weights"
        if folder.weights:
            missing = f"its package: {install_command('torch')}"
        report(f"not compared with sentence-transformers, which needs {missing}")
        return {}
    from server.importing import torch_reference

    report(f"comparing with {torch_reference.NAME}")
    reference = torch_reference.TorchReference(folder, MAX_COMPARED_TOKENS)
    similarities, differences = [], []
    for prompt in dict.fromkeys(("", *prompts.values())):
        with _refusing(f"{folder.path}: cannot compute with the prompt {prompt!r}"):
            ours = direct.embed_texts(encoder, PARITY_TEXTS, prompt)
            theirs = reference.embed(PARITY_TEXTS, prompt)
        if ours.shape != theirs.shape:
            raise ImportRefused(
                f"{folder.path}: vectors of {ours.shape[1]} dimensions, but "
                f"{theirs.shape[1]} with sentence-transformers"
            )
        similarities.append(cosines(ours, theirs))
        differences.append(np.abs(ours - theirs))
    # A NaN must not hide behind min and max.
    lowest, largest = float(np.min(similarities)), float(np.max(differences))
    texts = sum(map(len, similarities))
    report(f"{texts} texts: smallest cosine {lowest:.7f}, largest difference {largest:.1e}")
    if not lowest >= MIN_COSINE:
        worst = PARITY_TEXTS[int(np.argmin(np.concatenate(similarities))) % len(PARITY_TEXTS)]
        refusal = (
            f"{folder.path}: cosine {lowest:.5f} with {torch_reference.NAME}, at least "
            f"{MIN_COSINE} is needed (worst: {worst[:40]!r})"
        )
        if not wishes.force:
            raise ImportRefused(f"{refusal}; --force imports it all the same")
        report(f"warning: {refusal}")
    return {
        "against": torch_reference.NAME,
        "texts": texts,
        "min_cosine": round(lowest, 7),
        "max_difference": float(f"{largest:.2g}"),
    }
