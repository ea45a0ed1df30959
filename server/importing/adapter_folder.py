"""A folder that holds an adapter is made whole: base and adapter merged, the rest linked.

What comes out is a folder as any other, below the installed models until the import is over. Which
base it is is never guessed and never fetched. Not for two imports into one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from server.delivery.placing import workshop
from server.errors import ImportRefused
from server.importing.folder import CONFIG_FILE
from server.importing.head import MODULES_FILE, WEIGHTS_FILE, find_transformer, read_modules
from server.importing.json_files import read_json
from server.importing.lora import ADAPTER_CONFIG_FILE, ADAPTER_FILE, merge_lora, read_lora
from server.importing.prompts import PROMPTS_FILE
from server.importing.told import Told, tell
from server.importing.weight_files import find_transformer_weights

_PICKLED_ADAPTER = "adapter_model.bin"
_ADAPTER_FILES = (ADAPTER_CONFIG_FILE, ADAPTER_FILE, _PICKLED_ADAPTER)
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "*merges*",
)


@dataclass(frozen=True, slots=True)
class Base:
    """The folder of the model that an adapter was trained on, and who says so."""

    path: Path
    source: str


def find_base(path: Path, wished: Path | None, *, look_beside: bool = True) -> Base | None:
    """The base of an adapter's folder; None if it is not known, or the folder is no adapter's.

    Args:
        wished: as a person says it.
        look_beside: the adapter's own word for it may be a path, also from its folder or from the
            one around it.

    Raises:
        ImportRefused: the base is no folder of a model, or there is no adapter for it.
    """
    place = path / find_transformer(path)
    if not (place / ADAPTER_CONFIG_FILE).is_file():
        if wished is not None:
            raise ImportRefused(f"--base: {place} holds no {ADAPTER_CONFIG_FILE}")
        return None
    if wished is not None:
        return _checked(Base(wished, "--base"))
    said = _said_base(place)
    there = [one for one in (path / said, path.parent / said) if said and one.is_dir()]
    return _checked(Base(there[0], ADAPTER_CONFIG_FILE)) if there and look_beside else None


@contextlib.contextmanager
def whole_folder(
    path: Path, base: Base | None, into: Path, report: Callable[[str], None]
) -> Iterator[Path]:
    """The folder itself; or, of an adapter, one that holds the merged model, gone afterwards.

    Args:
        base: see `find_base`.
        into: the folder of installed models; made if need be.

    Raises:
        ImportRefused: there is no base, or it is not clear what is to be merged, or it cannot be.
    """
    place = path / find_transformer(path)
    if not (place / ADAPTER_CONFIG_FILE).is_file():
        yield path
        return
    if (base is None or base.source != "--base") and _is_merged(place):
        base = None
    elif base is None:
        raise ImportRefused(
            f"{path}: an adapter without its base, which it calls {_said_base(place)!r}; name that "
            "model's folder with --base"
        )
    with workshop(into) as shop:
        whole = shop.new / path.resolve().name
        whole.mkdir()
        if base is None:
            _link_all(path, whole)
            told = "none is left beside it: the whole weights count as they are"
            tell([Told("adapter", told, ADAPTER_CONFIG_FILE)], report)
        else:
            tell([Told("base of the adapter", str(base.path), base.source)], report)
            _make_whole(path, base.path, whole, report)
        try:
            yield whole
        except ImportRefused as error:  # this folder is gone when a person reads of it
            raise ImportRefused(error.message.replace(str(whole), str(path))) from error


def _is_merged(place: Path) -> bool:
    """Whether there are whole weights and no adapter, of which only the configuration is left.

    Raises:
        ImportRefused: both are there.
    """
    weights = find_transformer_weights(place)
    adapters = [name for name in (ADAPTER_FILE, _PICKLED_ADAPTER) if (place / name).exists()]
    if weights and adapters:
        raise ImportRefused(
            f"{place}: holds whole weights ({weights[0]}) and an adapter ({adapters[0]}), and "
            "nothing says whether they are merged; remove the adapter's files if they are, or name "
            "the weights to merge it into with --base FOLDER"
        )
    return bool(weights)


def _said_base(place: Path) -> str:
    return str(read_json(place / ADAPTER_CONFIG_FILE).get("base_model_name_or_path") or "")


def _checked(base: Base) -> Base:
    place = base.path / find_transformer(base.path)
    if not (place / CONFIG_FILE).is_file():
        raise ImportRefused(f"{base.source}: {place}: no {CONFIG_FILE}: not a folder of a model")
    return base


def _make_whole(path: Path, base: Path, whole: Path, report: Callable[[str], None]) -> None:
    """The adapter's files before the base's, but for the config, which is the weights' own."""
    inner, from_base = find_transformer(path), find_transformer(base)
    if (path / MODULES_FILE).is_file():
        _link_all(path, whole)
    else:
        inner = from_base
        _link_all(path, whole / inner)
        if (base / MODULES_FILE).is_file():
            _link_head(base, whole)
            tell([Told("pooling and prompts", "as the base has them", MODULES_FILE)], report)
    place, model = whole / inner, base / from_base
    has_tokenizer = (place / "tokenizer.json").exists()
    for file in model.iterdir():
        is_tokenizers = any(file.match(pattern) for pattern in _TOKENIZER_FILES)
        if file.suffix in (".json", ".txt", ".model") and not (is_tokenizers and has_tokenizer):
            _link(file, place / file.name, replace=file.name == CONFIG_FILE)
    for pattern in ("*.safetensors*", "*.onnx*", "onnx/*"):  # of one of the two alone
        for file in place.glob(pattern):
            file.unlink()
    weights = find_transformer_weights(model)
    if not weights:
        raise ImportRefused(f"{base}: has no safetensors file to merge an adapter into")
    source = path / find_transformer(path)
    layers = read_lora(source)
    model_type = str(read_json(model / CONFIG_FILE).get("model_type"))
    merge_lora(model, weights, model_type, layers, place / WEIGHTS_FILE)
    ranks = ", ".join(map(str, sorted({layer.a.shape[0] for layer in layers.values()})))
    told = f"LoRA of rank {ranks}, merged in float32 into {len(layers)} of the base's matrices"
    tell([Told("adapter", told, ADAPTER_FILE)], report)


def _link_head(base: Path, whole: Path) -> None:
    """What the base says of pooling, dense layers, normalisation and prompts."""
    for name in (MODULES_FILE, PROMPTS_FILE):
        if (base / name).is_file():
            _link(base / name, whole / name)
    for _, folder in (read_modules(base) or [])[1:]:
        if folder and (base / folder).is_dir():
            _link_all(base / folder, whole / folder)


def _link_all(source: Path, target: Path) -> None:
    """Links to all files but those of an adapter."""
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.rglob("*")):
        if file.is_file() and file.name not in _ADAPTER_FILES:
            _link(file, target / file.relative_to(source), replace=True)


def _link(file: Path, link: Path, *, replace: bool = False) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    if replace:
        link.unlink(missing_ok=True)
    if not link.is_symlink():
        link.symlink_to(file.resolve())
