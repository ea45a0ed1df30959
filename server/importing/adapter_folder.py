"""A folder that holds an adapter is made whole: base and adapter merged, the rest linked.

What comes out is a folder as any other, below the installed models until the import is over. Which
base it is is never guessed and never fetched. Not for two imports into one place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from server.delivery.placing import workshop
from server.errors import ImportRefused
from server.importing.folder import CONFIG_FILE, PROMPTS_FILE
from server.importing.head import MODULES_FILE, WEIGHTS_FILE, find_transformer, read_modules
from server.importing.json_files import read_json
from server.importing.lora import ADAPTER_CONFIG_FILE, ADAPTER_FILE, merge_lora, read_lora
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


@contextlib.contextmanager
def whole_folder(
    path: Path,
    base: Path | None,
    into: Path,
    report: Callable[[str], None],
    *,
    look_beside: bool = True,
) -> Iterator[Path]:
    """The folder itself; or, of an adapter, one that holds the merged model, gone afterwards.

    Args:
        base: the folder of the model that the adapter was trained on, as a person says it.
        into: the folder of installed models; made if need be.
        look_beside: the adapter's own word for its base may be a path on this machine.

    Raises:
        ImportRefused: there is no base, or it is not clear what is to be merged, or it cannot be.
    """
    place = path / find_transformer(path)
    if not (place / ADAPTER_CONFIG_FILE).is_file():
        if base is not None:
            raise ImportRefused(f"--base: {place} holds no {ADAPTER_CONFIG_FILE}")
        yield path
        return
    if base is not None or not _is_merged(place):
        base = _find_base(path, place, base, report, look_beside=look_beside)
    with workshop(into) as shop:
        whole = shop.new / path.resolve().name
        whole.mkdir()
        if base is None:
            _link_all(path, whole)
            told = "none is left beside it: the whole weights count as they are"
            tell([Told("adapter", told, ADAPTER_CONFIG_FILE)], report)
        else:
            _make_whole(path, base, whole, report)
        yield whole


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
    return bool(weights) and not adapters


def _find_base(
    path: Path, place: Path, base: Path | None, report: Callable[[str], None], *, look_beside: bool
) -> Path:
    source = "--base"
    if base is None:
        source = ADAPTER_CONFIG_FILE
        named = read_json(place / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
        said = str(named or "")
        tried = [path / said, path.parent / said] if said and look_beside else []
        base = next((one for one in tried if one.is_dir()), None)
        if base is None:
            raise ImportRefused(
                f"{path}: an adapter without its base, which it calls {said!r}; put that model's "
                "folder on this machine and say --base FOLDER"
            )
    if not (base / find_transformer(base) / CONFIG_FILE).is_file():
        raise ImportRefused(f"{source}: {base}: no {CONFIG_FILE}: not a folder of a model")
    tell([Told("base of the adapter", str(base), source)], report)
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
