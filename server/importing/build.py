"""The files of an imported model: its graph, its weights and its tokenizer, made or copied.

Torch is needed only where a graph has to be made. Not for two imports into one folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from server.catalog.card import GRAPH_FILE, TOKENIZER_FILE, FilePin
from server.catalog.verify import sha256_of
from server.errors import ImportRefused, ModelLoadError
from server.importing import packages
from server.importing.folder import CONFIG_FILE, ModelFolder
from server.importing.head import MODULES_FILE
from server.importing.json_files import MAX_TOKENIZER_BYTES, check_json_size
from server.importing.plan import Wishes
from server.importing.proof_texts import REFERENCE_TEXTS
from server.importing.published_graph import choose_graph, files_of_graph
from server.importing.refusing import refusing
from server.importing.tokenizer_correction import correct
from server.importing.tokenizer_settings import read_settings
from server.importing.tokenizer_source import check_numbers
from server.importing.whole_files import refuse_broken_file
from server.inference import direct, least_cosines
from server.inference.backend import Layout
from server.inference.loader import Encoder
from server.inference.onnx_backend import OnnxBackend
from server.inference.pooling import cosines
from server.inference.tokenizer import Tokenizer
from server.program.command_lines import install_command

# Longest text that is computed in an import: attention takes memory by the square of it (at 32,768
# tokens, the limit of Qwen3-Embedding, 69 GB in float32 with 16 heads).
MAX_COMPARED_TOKENS = 2048
_MOST_LENGTH_DIFFERENCE = 1e-2  # of a vector, by rounding, also in a graph of low precision
SPARE_BYTES = 64 * 1024 * 1024  # of disk that an import leaves free


def build_files(
    folder: ModelFolder, made: Path, wishes: Wishes, report: Callable[[str], None]
) -> Encoder:
    """Write what computes the model into the empty folder `made`, and open it.

    Returns:
        An encoder for texts of up to MAX_COMPARED_TOKENS tokens.

    Raises:
        ImportRefused: the files cannot be made, or the graph cannot compute.
        ModelLoadError: tokenizer or graph are not what can be served.
    """
    _write_tokenizer(folder, made, report)  # first: it is fast, and much is refused there
    _write_graph(folder, made, wishes, report)
    if makes_own_graph(folder, wishes):  # then the weights are there as well
        shutil.copyfile(folder.transformer_path / CONFIG_FILE, made / CONFIG_FILE)
    tokenizer = Tokenizer(made / TOKENIZER_FILE, min(folder.max_input_tokens, MAX_COMPARED_TOKENS))
    backend = _open_graph(folder, made, wishes)
    with refusing(f"{folder.path}: the graph cannot compute"):
        embedding_dim = backend.forward([np.zeros(1, np.int32)]).shape[1]
        _check_pooling(folder, backend, tokenizer)
    return Encoder(tokenizer, (backend,), embedding_dim)


def pin_files(made: Path) -> dict[str, FilePin]:
    """Size and sha256 of every file below the folder."""
    files = sorted(path for path in made.rglob("*") if path.is_file())
    return {
        path.relative_to(made).as_posix(): FilePin(
            bytes=path.stat().st_size, sha256=sha256_of(path)
        )
        for path in files
    }


def makes_own_graph(folder: ModelFolder, wishes: Wishes) -> bool:
    """Whether a graph is made; else the publisher's is used.

    Raises:
        ImportRefused: the one that is wished for cannot be had.
    """
    if wishes.onnx is not None and wishes.graph == "own":
        raise ImportRefused(
            "--onnx names a graph of the publisher's, and --graph own makes another"
        )
    torch_is_there = packages.is_installed("torch")
    not_stock = folder.not_stock
    if not_stock and (wishes.graph == "own" or not folder.graphs):
        remedy = "only an ONNX graph of the publisher's could be imported"
        if folder.graphs:
            remedy = "--graph published takes the publisher's graph"
        raise ImportRefused(f"{folder.path}: {not_stock}; {remedy}")
    can_make = torch_is_there and folder.weights and not not_stock
    published = wishes.graph == "published" or wishes.onnx is not None
    if published or (wishes.graph is None and folder.graphs and not can_make):
        choose_graph(folder.path, folder.graphs)
        return False
    if not folder.weights:
        none = "" if folder.graphs else ", and no ONNX graph"
        raise ImportRefused(
            f"{folder.path}: has no safetensors file to make a graph from{none}; fetch the publisher's "
            "whole folder"
        )
    if not torch_is_there:
        raise ImportRefused(
            f"{folder.path}: {'' if folder.graphs else 'has no ONNX graph, and '}making one needs torch: "
            f"{install_command('torch')}"
        )
    return True


def _write_graph(
    folder: ModelFolder, made: Path, wishes: Wishes, report: Callable[[str], None]
) -> None:
    if makes_own_graph(folder, wishes):
        _check_room(folder.path, made, folder.weights)
        from server.importing.torch_export import check_tensors, export_graph

        check_tensors(folder)
        report(
            f"tensors: all that {folder.architecture} wants are there, and none is left over but those "
            "that no embedding uses"
        )
        _copy(folder.path, made, folder.weights)
        report(f"making the graph ({folder.architecture}); this takes from seconds to minutes")
        graph, share = export_graph(folder)
        (made / GRAPH_FILE).write_bytes(graph)
        report(
            f"graph: {len(graph):,} bytes; {share.outside_bytes:,} bytes of weights stay in "
            f"{', '.join(folder.weights)}"
        )
        return
    if folder.head.dense:
        raise ImportRefused(
            f"{folder.path}: the publisher's graph lacks the dense layers, and making another one "
            f"needs torch: {install_command('torch')}"
        )
    published = choose_graph(folder.path, folder.graphs)
    report(f"using the publisher's {published}")
    if folder.not_stock:
        report(f"only that graph is the publisher's model: {folder.not_stock}")
    files = files_of_graph(folder.path, published)
    for file in files:
        refuse_broken_file((folder.path / published).with_name(file))
    _copy((folder.path / published).parent, made, files)
    (made / files[0]).rename(made / GRAPH_FILE)


def _open_graph(folder: ModelFolder, made: Path, wishes: Wishes) -> OnnxBackend:
    head, graph = folder.head, made / GRAPH_FILE
    try:
        # Padded to the longest, so that the proof of company sees whether padding matters.
        return OnnxBackend(
            graph, pooling=head.pooling, normalized=head.normalize, layout=Layout.PADDED
        )
    except ModelLoadError as error:  # names a place that nobody has seen
        own = makes_own_graph(folder, wishes)
        source = folder.path if own else folder.path / choose_graph(folder.path, folder.graphs)
        reason = str(error).removeprefix(f"graph {graph}: ").replace(str(graph), str(source))
        raise ImportRefused(f"{source}: {reason}") from error


def _check_pooling(folder: ModelFolder, backend: OnnxBackend, tokenizer: Tokenizer) -> None:
    """A graph that pools itself must do it as the folder says; one with token vectors, too, shows it.

    Raises:
        ImportRefused: it does not.
    """
    for sequence in direct.tokenize(tokenizer, REFERENCE_TEXTS):
        pooled = backend.pool_tokens(sequence)
        if pooled is None:
            return
        given = backend.forward([sequence])
        lengths = np.linalg.norm(given) / np.linalg.norm(pooled)
        cosine = cosines(given, pooled)[0] if given.shape == pooled.shape else 0.0
        if cosine < least_cosines.IMPORT or abs(lengths - 1) > _MOST_LENGTH_DIFFERENCE:
            head = folder.head
            raise ImportRefused(
                f"{folder.path}: the graph's own vector of a text is not that of its token vectors "
                f"by pooling {head.pooling}, {'' if head.normalize else 'not '}normalised (cosine "
                f"{cosine:.5f}, {lengths:.3f} times as long): the graph or "
                f"{'what is said of its pooling' if folder.lacks_modules else MODULES_FILE} is "
                "another model's"
            )


def _copy(source: Path, target: Path, names: Collection[str]) -> None:
    """Copy files, links resolved; see `_check_room`."""
    _check_room(source, target, names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def _check_room(source: Path, target: Path, names: Collection[str]) -> None:
    """Do nothing if the disk has room for these files.

    Raises:
        ImportRefused: it has not.
    """
    needed = sum((source / name).stat().st_size for name in names) + SPARE_BYTES
    free = shutil.disk_usage(target).free
    if needed > free:
        raise ImportRefused(f"{target.parent}: {needed:,} bytes are needed and {free:,} are free")


def _write_tokenizer(folder: ModelFolder, made: Path, report: Callable[[str], None]) -> None:
    """The folder's tokenizer.json byte for byte, or one that does what the folder says of it."""
    settings = read_settings(folder.transformer_path, folder.config)
    source = folder.transformer_path / TOKENIZER_FILE
    if source.is_file():
        with refusing(str(source)):
            check_json_size(source, MAX_TOKENIZER_BYTES)
            tokenizer = RustTokenizer.from_file(str(source))
        check_numbers(source.parent, tokenizer)
    else:
        from server.importing.torch_tokenizer import make_tokenizer

        tokenizer = make_tokenizer(settings, report)
    with refusing(f"{source}: the tokenizer fails"):
        changed = correct(tokenizer, settings, folder.head.pooling, report)
    if folder.lower_case:
        own = tokenizer.normalizer
        tokenizer.normalizer = NormalizerSequence([Lowercase(), *([own] if own else [])])
    if changed or folder.lower_case or not source.is_file():
        tokenizer.save(str(made / TOKENIZER_FILE))
    else:
        shutil.copyfile(source, made / TOKENIZER_FILE)
