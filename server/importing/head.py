"""What turns a model's token vectors into one vector a text, as sentence-transformers' files say it.

A list of modules in `modules.json`, each with a configuration in a folder of its own. What cannot be
served as sentence-transformers would compute it is refused, with the reason. Pure functions of
files; any thread may call.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from server.catalog.card import Activation, PoolingMode
from server.catalog.names import stays_below
from server.errors import ImportRefused
from server.importing.json_files import is_there, read_any_json, read_json
from server.importing.told import Told, yes_or_no

MODULES_FILE = "modules.json"
MODULE_CONFIG_FILE = "config.json"  # in the folder of a module
WEIGHTS_FILE = "model.safetensors"
POOLING_MODES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last_token"}
POOLING_SWITCHES = {  # the older spelling of 1_Pooling/config.json: one boolean a mode
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
ACTIVATIONS = get_args(Activation)


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer after the pooling, in a folder of its own."""

    folder: str
    activation: Activation
    out_features: int

    @property
    def weights(self) -> str:
        """Its file, from the model's folder."""
        return Path(self.folder, WEIGHTS_FILE).as_posix()


@dataclass(frozen=True, slots=True)
class Head:
    """What turns token vectors into one vector a text."""

    pooling: PoolingMode
    dense: tuple[DenseLayer, ...]
    normalize: bool
    told: tuple[Told, ...] = field(default=(), compare=False, repr=False)  # who says each of these


def read_modules(path: Path) -> list[tuple[str, str]] | None:
    """The class and the folder of each module of modules.json; None without that file.

    Raises:
        ImportRefused: it is not such a list, or names code of the model's own.
    """
    file = path / MODULES_FILE
    if not is_there(file):
        return None
    modules = read_any_json(file)
    try:
        steps = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise ImportRefused(f"{file}: not a list of modules with type and path") from None
    names = [str(module.get("name", n)) for n, module in enumerate(modules)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:  # sentence-transformers would leave out all of them but the last
        raise ImportRefused(f"{file}: two modules have the name {twice}")
    for kind, _ in steps:
        if not kind.startswith("sentence_transformers."):
            raise ImportRefused(f"{file}: {kind} is code of the model's own, which is never run")
    for _, folder in steps:
        if not stays_below(folder):
            raise ImportRefused(f"{file}: {folder} lies outside the model's folder")
    return steps


def find_transformer(path: Path) -> str:
    """The folder of the transformer's files, from the model's; empty if they lie at its top.

    sentence-transformers before 2.0 gave it a folder of its own, `0_Transformer`.

    Raises:
        ImportRefused: as `read_modules`.
    """
    modules = read_modules(path)
    place = Path(modules[0][1]).as_posix() if modules else "."
    return "" if place == "." else place


def read_head(path: Path) -> Head | None:
    """Pooling, dense layers and normalisation of a folder; None without modules.json.

    Raises:
        ImportRefused: they are not those that can be served.
    """
    file = path / MODULES_FILE
    steps = read_modules(path)
    if steps is None:
        return None
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in steps]
    layers = kinds.count("Dense")
    normalize = kinds[-1:] == ["Normalize"]
    if kinds != ["Transformer", "Pooling", *["Dense"] * layers, *["Normalize"] * normalize]:
        raise ImportRefused(
            f"{file}: {', '.join(kinds) or 'no modules'}: only Transformer, Pooling, then any number of Dense and, "
            "optionally, Normalize can be served"
        )
    pooling_file = Path(steps[1][1], MODULE_CONFIG_FILE).as_posix()
    pooling = read_pooling(path / pooling_file)
    dense = tuple(_read_dense_layer(path, folder) for _, folder in steps[2 : 2 + layers])
    told = (
        Told("pooling", pooling, pooling_file),
        _tell_dense_layers(dense),
        Told("normalize", yes_or_no(normalize), MODULES_FILE),
    )
    return Head(pooling, dense, normalize, told)


def _tell_dense_layers(dense: tuple[DenseLayer, ...]) -> Told:
    files = [MODULES_FILE, *(f"{layer.folder}/{MODULE_CONFIG_FILE}" for layer in dense)]
    named = [f"{layer.folder} to {layer.out_features}, {layer.activation}" for layer in dense]
    return Told("dense layers", "; ".join(named) or "none", ", ".join(files))


def read_pooling(path: Path) -> PoolingMode:
    """The one mode of a sentence-transformers pooling config, in either of its two spellings.

    Raises:
        ImportRefused: it has none, several, or one that cannot be served.
    """
    config = read_json(path)
    if config.get("include_prompt", True) not in (None, True):
        raise ImportRefused(
            f"{path}: include_prompt = {json.dumps(config['include_prompt'])} is not supported"
        )
    found = config.get("pooling_mode")
    if found is None:
        found = [mode for switch, mode in POOLING_SWITCHES.items() if config.get(switch)]
    modes = found if isinstance(found, list) else [found]
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in POOLING_MODES:
        raise ImportRefused(
            f"{path}: pooling is {' and '.join(map(str, modes)) or 'not set'}, "
            f"but must be one of {', '.join(POOLING_MODES)}"
        )
    return POOLING_MODES[modes[0]]


def _read_dense_layer(path: Path, folder: str) -> DenseLayer:
    file = path / folder / MODULE_CONFIG_FILE
    config = read_json(file)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, name = activation.rpartition(".")
    known: Activation | None = next((one for one in ACTIVATIONS if one == name), None)
    if not module.startswith("torch.nn.modules") or known is None:
        raise ImportRefused(f"{file}: activation {activation} is none of {', '.join(ACTIVATIONS)}")
    if config.get("use_residual"):
        raise ImportRefused(f"{file}: use_residual is not supported")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ImportRefused(f"{file}: {key} {config[key]!r} is not supported")
    out_features = config.get("out_features")
    if not isinstance(out_features, int) or out_features < 1:
        raise ImportRefused(f"{file}: out_features must be a number")
    return DenseLayer(folder, known, out_features)
