"""Paths that are known to be no text embedding model: one line that names each and says what to do.

A table of kinds, each with what gives it away. Nothing is read but names, the first bytes of files
and JSON; no torch. Any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from server.catalog.card import CARD_FILE
from server.delivery.bundle_format import MANIFEST
from server.errors import ImportRefused, unusable
from server.importing.folder import CONFIG_FILE, TOKENIZER_CONFIG_FILE
from server.importing.head import MODULES_FILE, WEIGHTS_FILE
from server.importing.json_files import is_there
from server.importing.model_kinds import name_model_kind
from server.importing.published_graph import find_graphs
from server.importing.weight_files import INDEX_FILE
from server.importing.whole_files import refuse_broken_files
from server.inference.tensor_account import listed
from server.program.command_lines import own_command

Kind = Callable[[Path], str | None]  # what the path is and what to do; None: it is not of this kind

_ARCHIVE = re.compile(r".+\.(zip|tar|tgz|7z|rar|tar\.(gz|bz2|xz|zst))", re.IGNORECASE)
_PART = re.compile(r".+\.(safetensors|onnx|onnx_data|bin|pt|pth|h5|msgpack|json|toml)")
_BUNDLE_START = f"{MANIFEST}\0".encode()  # of a tar archive: the name of its first member
_ADDRESS = re.compile(r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.\-]+/[\w.\-]+)(?:/.*)?")
_CACHED = "models--*--*"
_SHOWN_FOLDERS = 3
# Weights of other software, by the files' names; each is told where no weights are that can be read.
# Pickles have a refusal of their own, and come before TensorFlow's and Flax's.
_OTHER_WEIGHTS = (
    ("*.gguf", "weights of llama.cpp (GGUF)"),
    ("*.mlpackage", "a Core ML model"),
    ("*.mlmodel*", "a Core ML model"),
    ("openvino/*.xml", "OpenVINO's form of a model"),
    ("openvino_model*.xml", "OpenVINO's form of a model"),
    ("*.npz", "weights of MLX"),
    ("*.tflite", "a TensorFlow Lite model"),
    ("*.engine", "a TensorRT engine"),
    ("*.plan", "a TensorRT engine"),
    ("tf_model.h5", "weights of TensorFlow"),
    ("saved_model.pb", "weights of TensorFlow"),
    ("*.ckpt.index", "weights of TensorFlow"),
    ("flax_model*.msgpack", "weights of Flax"),
    ("rust_model.ot", "weights of rust-bert"),
)
_PICKLES = ("*.bin", "*.pt", "*.pth")


def refuse_what_is_no_model(path: Path) -> None:
    """Name what a path is if it is no folder of a text embedding model, and say what to do.

    Raises:
        ImportRefused: it is of a known kind that cannot be imported, or a file of it is not whole.
    """
    try:
        said = _name(path)
    except OSError as error:
        raise ImportRefused(unusable(str(path), error)) from error
    if said is not None:
        raise ImportRefused(f"{_as_typed(path)} {said}")


def _name(path: Path) -> str | None:
    kinds = FILES if path.is_file() else FOLDERS if path.is_dir() else NOTHING_THERE
    said = next(filter(None, (kind(path) for kind in kinds)), None)
    if said is None and path.is_dir():
        refuse_broken_files(path)
        said = name_model_kind(path)
    return said


# --- files ----------------------------------------------------------------------------------------


def _wheel(path: Path) -> str | None:
    if path.suffix != ".whl":
        return None
    return (
        f"is a wheel; unpack it (python -m zipfile -e {path.name} FOLDER) and import the folder in it "
        f"that holds {CONFIG_FILE}"
    )


def _bundle(path: Path) -> str | None:
    if _starts_with(path, _BUNDLE_START):
        return f"is a bundle of this software: {own_command('bundle', 'install', str(path))}"
    return None


def _archive(path: Path) -> str | None:
    if _ARCHIVE.fullmatch(path.name):
        return f"is an archive; unpack it and import the folder in it that holds {CONFIG_FILE}"
    return None


def _gguf_file(path: Path) -> str | None:
    if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return f"holds {_OTHER_WEIGHTS[0][1]}, {_READABLE}"
    return None


def _part_of_a_folder(path: Path) -> str | None:
    if _PART.fullmatch(path.name):
        return f"is one file of a model; import its folder: {path.resolve().parent}"
    return None


def _starts_with(path: Path, start: bytes) -> bool:
    try:
        with path.open("rb") as opened:
            return opened.read(len(start)) == start
    except OSError:
        return False


# --- nothing on disk ------------------------------------------------------------------------------


def _as_typed(path: Path) -> str:
    """An address with both of its slashes."""
    return re.sub(r"^(https?):/+", r"\1://", str(path))


def _address(path: Path) -> str | None:
    """An address of the hub in a browser; a path has lost one of its two slashes."""
    found = _ADDRESS.fullmatch(str(path))
    if found is None:
        return None
    return f"is an address, not a folder; to fetch it: {own_command('models', 'pull', found[1])}"


# --- folders --------------------------------------------------------------------------------------


def _empty_folder(path: Path) -> str | None:
    return "is an empty folder: nothing was fetched into it" if not any(path.iterdir()) else None


def _installed_model(path: Path) -> str | None:
    if not (path / CARD_FILE).is_file():
        return None
    return (
        f"is a model of this server already ({CARD_FILE}): copy the folder into `models` of the data "
        "folder, or move it by a bundle"
    )


def _absent_files_of_a_cache(path: Path) -> str | None:
    parts = path.resolve().parts
    if ".no_exist" not in parts:
        return None
    at = parts.index(".no_exist")
    snapshot = Path(*parts[:at], "snapshots", *parts[at + 1 :])
    return f"is the hub client's list of files that the hub does not have; import {snapshot}"


def _cached_repository(path: Path) -> str | None:
    """The folder models--ORGANISATION--NAME itself, or `snapshots` or `blobs` in it."""
    root = path.parent if path.name in ("snapshots", "blobs", "refs") else path
    if is_there(path / CONFIG_FILE) or not root.resolve().match(_CACHED):
        return None
    found = _snapshots(root)
    if not found:
        return "is of the hub client's cache and has no snapshot: fetch the model again"
    more = f" (others: {', '.join(snapshot.name for snapshot in found[1:])})" if found[1:] else ""
    return f"is of the hub client's cache; import the snapshot in it: {found[0]}{more}"


def _whole_cache(path: Path) -> str | None:
    """The folder `hub` of the cache, or the one that holds it."""
    roots = sorted(path.glob(_CACHED)) or sorted(path.glob(f"hub/{_CACHED}"))
    if is_there(path / CONFIG_FILE) or not roots:
        return None
    found = [str((_snapshots(root) or [root])[0]) for root in roots]
    return f"is the hub client's cache; import a snapshot in it: {listed(found, _SHOWN_FOLDERS)}"


def _snapshots(root: Path) -> list[Path]:
    """Snapshots of a repository in the cache, that of its main branch first."""
    main = root / "refs" / "main"
    commit = main.read_text(errors="replace").strip() if main.is_file() else ""
    found = sorted(entry for entry in root.glob("snapshots/*") if entry.is_dir())
    return sorted(found, key=lambda snapshot: snapshot.name != commit)


def _pipeline_of_images(path: Path) -> str | None:
    return (
        "makes images (diffusers); choose a model of texts"
        if is_there(path / "model_index.json")
        else None
    )


def _other_weights(path: Path) -> str | None:
    if _has_weights(path):
        return None
    found = next((what for pattern, what in _OTHER_WEIGHTS if any(path.glob(pattern))), None)
    if found is None or any(next(path.glob(pattern), None) for pattern in _PICKLES):
        return None
    return f"holds {found}, {_READABLE}"


def _unfinished_download(path: Path) -> str | None:
    if _has_weights(path):
        return None
    repository = next((up for up in path.resolve().parents if up.match(_CACHED)), None)
    places = [path / ".cache" / "huggingface" / "download"]
    places += [repository / "blobs"] if repository else []
    left = next((file for place in places for file in place.glob("*.incomplete")), None)
    if left is None:
        return None
    return f"has no weights, and a download was not finished ({left.name}); fetch the model again"


def _folder_around(path: Path) -> str | None:
    """An unpacked archive or wheel: the model is one folder further in."""
    if any(is_there(path / name) for name in (CONFIG_FILE, MODULES_FILE, WEIGHTS_FILE)):
        return None
    inner = sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
    found = [folder for folder in inner if is_there(folder / TOKENIZER_CONFIG_FILE)]
    if not found:
        return None
    shown = ", ".join(map(str, found[:_SHOWN_FOLDERS]))
    return f"is not a model's folder itself; import one in it: {shown}"


def _has_weights(path: Path) -> bool:
    """Whether there are weights that an import can read, were they whole."""
    places = (path, *path.glob("0_*"))  # sentence-transformers' old layout
    names = (WEIGHTS_FILE, INDEX_FILE)
    found = any(is_there(place / name) for place in places for name in names)
    return found or any(
        find_graphs(path, "" if place == path else place.name, None) for place in places
    )


_READABLE = (
    "which cannot be read here; import the folder that it was made of, with safetensors or an ONNX "
    "graph"
)
FILES: tuple[Kind, ...] = (_wheel, _bundle, _archive, _gguf_file, _part_of_a_folder)
NOTHING_THERE: tuple[Kind, ...] = (_address,)
FOLDERS: tuple[Kind, ...] = (
    _empty_folder,
    _installed_model,
    _absent_files_of_a_cache,
    _cached_repository,
    _whole_cache,
    _pipeline_of_images,
    _other_weights,
    _unfinished_download,
    _folder_around,
)
