"""What a Hugging Face or sentence-transformers folder says of its model.

Reads the folder's JSON files and nothing else: no code of the folder is run, no weight is opened.
What cannot be served as sentence-transformers would compute it is refused, with the reason. Pure
functions; any thread may call.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from server.catalog.card import TOKENIZER_FILE, Activation, PoolingMode
from server.catalog.names import is_card_name
from server.errors import ImportRefused, unusable
from server.program.command_lines import own_command

CONFIG_FILE = "config.json"
GRAPH_FILE = "onnx/model.onnx"
INDEX_FILE = "model.safetensors.index.json"
REFERENCE_FILE = "reference.safetensors"  # an import writes it
WEIGHTS_FILE = "model.safetensors"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")

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
# The names under which models keep what `input_type` means.
PROMPT_NAMES: dict[str, Literal["query", "document"]] = {
    "query": "query",
    "search_query": "query",
    "web_search_query": "query",
    "s2p_query": "query",
    "document": "document",
    "passage": "document",
    "corpus": "document",
    "search_document": "document",
}
# Where configurations keep how many tokens there are positions for.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer after the pooling, in a folder of its own."""

    folder: str
    activation: str  # a class of torch.nn
    out_features: int

    @property
    def weights(self) -> str:
        """Its file, from the model's folder."""
        return f"{self.folder}/{WEIGHTS_FILE}"


@dataclass(frozen=True, slots=True)
class Head:
    """What turns token vectors into one vector a text."""

    pooling: PoolingMode
    dense: tuple[DenseLayer, ...]
    normalize: bool


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that can be imported; `path` is where it lies."""

    path: Path
    config: Mapping[str, Any]
    head: Head
    assumed_head: bool  # there is no modules.json that says it
    prompts: Mapping[Literal["query", "document"], str]
    default_prompt: Literal["query", "document"] | None
    max_input_tokens: int
    lower_case: bool  # sentence-transformers puts texts into lower case first
    weights: tuple[str, ...]  # safetensors files, from the folder; empty if there are none

    @property
    def architecture(self) -> str:
        """As transformers calls it."""
        return str(self.config["model_type"])

    @property
    def graph(self) -> Path | None:
        """The ONNX graph that the publisher made, if there is one."""
        path = self.path / GRAPH_FILE
        return path if path.is_file() else None


def read_folder(
    path: Path, *, pooling: PoolingMode | None = None, normalize: bool | None = None
) -> ModelFolder:
    """Read a folder's own description.

    Args:
        pooling, normalize: for a folder that does not say them (it has no modules.json); there
            sentence-transformers assumes mean pooling without normalisation.

    Raises:
        ImportRefused: the folder is none, or needs what is not supported.
    """
    _check_is_folder(path)
    if not (path / CONFIG_FILE).is_file():
        raise ImportRefused(f"{path}: no {CONFIG_FILE}: not a folder of a transformer model")
    config = read_json(path / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise ImportRefused(f"{path / CONFIG_FILE}: says no model_type")
    if not (path / TOKENIZER_FILE).is_file():
        raise ImportRefused(
            f"{path}: no {TOKENIZER_FILE}; make one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    head = _read_head(path)
    assumed = head is None
    if head is not None and (pooling is not None or normalize is not None):
        raise ImportRefused(
            f"{path / 'modules.json'} says pooling and normalisation; --pooling and --normalize "
            "are for folders without it"
        )
    if head is None:
        head = Head(pooling or "mean", (), bool(normalize))
    prompts, default_prompt = _read_prompts(path)
    sentence_bert = _read_optional(path / "sentence_bert_config.json")
    return ModelFolder(
        path=path,
        config=config,
        head=head,
        assumed_head=assumed,
        prompts=prompts,
        default_prompt=default_prompt,
        max_input_tokens=_max_input_tokens(path, config, sentence_bert),
        lower_case=sentence_bert.get("do_lower_case") is True,
        weights=_find_weights(path, head),
    )


def _check_is_folder(path: Path) -> None:
    hint = ""
    if "/" in str(path) and is_card_name(str(path)):  # as the hub calls models
        hint = f"; if a model of the hub is meant: {own_command('models', 'pull', str(path))}"
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return
    except OSError as error:
        raise ImportRefused(f"{unusable(str(path), error)}{hint}") from error
    raise ImportRefused(f"{path} is not a folder")


def read_json(path: Path) -> dict[str, Any]:
    """The object in this file.

    Raises:
        ImportRefused: the file is missing or broken.
    """
    content = _read_any_json(path)
    if not isinstance(content, dict):
        raise ImportRefused(f"{path}: not a JSON object")
    return content


def _read_any_json(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():  # a named pipe would never end
            raise ImportRefused(f"{path}: not a file")
        content = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
        return content
    except OSError as error:
        raise ImportRefused(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{path}: not JSON: {error}") from None


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if _is_there(path) else {}


def _is_there(path: Path) -> bool:
    """Also a link whose target was not copied: taken for absent, it would change the vectors."""
    return path.exists() or path.is_symlink()


def _read_head(path: Path) -> Head | None:
    """Pooling, dense layers and normalisation; None without modules.json."""
    file = path / "modules.json"
    if not _is_there(file):
        return None
    modules = _read_any_json(file)
    try:
        steps = [(str(module["type"]), str(module["path"])) for module in modules]
    except (TypeError, KeyError):
        raise ImportRefused(f"{file}: not a list of modules with type and path") from None
    for kind, _ in steps:
        if not kind.startswith("sentence_transformers."):
            raise ImportRefused(f"{file}: {kind} is code of the model's own, which is never run")
    for _, folder in steps:
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise ImportRefused(f"{file}: {folder} lies outside the model's folder")
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in steps]
    layers = kinds.count("Dense")
    normalize = kinds[-1:] == ["Normalize"]
    if kinds != ["Transformer", "Pooling", *["Dense"] * layers, *["Normalize"] * normalize]:
        raise ImportRefused(
            f"{file}: {', '.join(kinds)}: only Transformer, Pooling, then any number of Dense and, "
            "optionally, Normalize can be served"
        )
    if steps[0][1] not in ("", "."):
        raise ImportRefused(f"{file}: the transformer lies in {steps[0][1]}; it must be at the top")
    pooling = _read_pooling(path / steps[1][1] / "config.json")
    dense = tuple(_read_dense(path, folder) for _, folder in steps[2 : 2 + layers])
    return Head(pooling, dense, normalize)


def _read_pooling(path: Path) -> PoolingMode:
    """The one mode of a sentence-transformers pooling config, in either of its two spellings."""
    config = read_json(path)
    if config.get("include_prompt") is False:
        raise ImportRefused(f"{path}: include_prompt = false is not supported")
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


def _read_dense(path: Path, folder: str) -> DenseLayer:
    file = path / folder / "config.json"
    config = read_json(file)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    module, _, name = activation.rpartition(".")
    if not module.startswith("torch.nn.modules") or name not in ACTIVATIONS:
        raise ImportRefused(f"{file}: activation {activation} is none of {', '.join(ACTIVATIONS)}")
    if config.get("use_residual"):
        raise ImportRefused(f"{file}: use_residual is not supported")
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ImportRefused(f"{file}: {key} {config[key]!r} is not supported")
    out_features = config.get("out_features")
    if not isinstance(out_features, int) or out_features < 1:
        raise ImportRefused(f"{file}: out_features must be a number")
    return DenseLayer(folder, name, out_features)


def _read_prompts(
    path: Path,
) -> tuple[dict[Literal["query", "document"], str], Literal["query", "document"] | None]:
    file = path / "config_sentence_transformers.json"
    config = _read_optional(file)
    named = config.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise ImportRefused(f"{file}: prompts must be texts by name")
    prompts: dict[Literal["query", "document"], str] = {}
    for name, purpose in PROMPT_NAMES.items():
        # sentence-transformers writes an empty `document` beside a `passage` that is meant.
        if named.get(name) and not prompts.get(purpose):
            prompts[purpose] = named[name]
    default = config.get("default_prompt_name")
    if not isinstance(default, str | None):
        raise ImportRefused(f"{file}: default_prompt_name must be a text")
    if default is None or (default in named and not named[default]):
        return prompts, None
    if default not in named:
        raise ImportRefused(f"{file}: default_prompt_name {default!r} is not among the prompts")
    for purpose, prompt in prompts.items():
        if prompt == named[default]:
            return prompts, purpose
    raise ImportRefused(
        f"{file}: the default prompt {default!r} is that of neither a query nor a document, and "
        "input_type knows no other"
    )


def _max_input_tokens(
    path: Path, config: Mapping[str, Any], sentence_bert: Mapping[str, Any]
) -> int:
    """Where sentence-transformers cuts: its own setting, else the tokenizer's within positions."""
    own = sentence_bert.get("max_seq_length")
    if own is None:
        tokenizer = _read_optional(path / "tokenizer_config.json")
        own = tokenizer.get("model_max_length")
        positions = next((config[key] for key in POSITIONS if key in config), None)
        found = [limit for limit in (own, positions) if isinstance(limit, int | float)]
        own = min(found, default=None)
    if isinstance(own, bool) or not isinstance(own, int | float) or not 1 <= own < 10_000_000:
        raise ImportRefused(f"{path}: says nowhere how many tokens a text may have")
    return int(own)


def _find_weights(path: Path, head: Head) -> tuple[str, ...]:
    """The safetensors files, those of the dense layers last."""
    if (path / INDEX_FILE).is_file():
        shards = read_json(path / INDEX_FILE).get("weight_map")
        if not isinstance(shards, dict):
            raise ImportRefused(f"{path / INDEX_FILE}: has no weight_map")
        files = sorted({str(name) for name in shards.values()})
    else:
        files = [WEIGHTS_FILE] if (path / WEIGHTS_FILE).is_file() else []
    pickles = [name for name in PICKLES if (path / name).exists()]
    if not files and pickles and not (path / GRAPH_FILE).is_file():
        raise ImportRefused(
            f"{path}: weights only as {pickles[0]}, which can run code when it is read; convert "
            "them to safetensors where that code may run"
        )
    if files:
        files += [layer.weights for layer in head.dense]
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ImportRefused(f"{path / INDEX_FILE}: {name} lies outside the folder")
        if not name.endswith(".safetensors") or name == REFERENCE_FILE:
            raise ImportRefused(f"{path / INDEX_FILE}: {name} cannot be a file of weights")
        if not (path / name).is_file():
            raise ImportRefused(f"{path / name}: No such file")
    return tuple(files)
