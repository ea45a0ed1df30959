"""What a Hugging Face or sentence-transformers folder says of its model.

Reads the folder's JSON files and nothing else: no code of the folder is run, no weight is opened.
What cannot be served as sentence-transformers would compute it is refused, with the reason. Pure
functions; any thread may call.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.catalog.card import TOKENIZER_FILE, PoolingMode
from server.catalog.names import Purpose, is_card_name, stays_below
from server.errors import ImportRefused, unusable
from server.importing.head import MODULES_FILE, WEIGHTS_FILE, Head
from server.importing.head_choice import choose_head
from server.importing.json_files import is_there, read_json, read_json_if_there
from server.importing.tokenizer_source import check_source
from server.importing.told import Told
from server.program.command_lines import own_command

CONFIG_FILE = "config.json"
PROMPTS_FILE = "config_sentence_transformers.json"
SENTENCE_BERT_FILE = "sentence_bert_config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
PUBLISHED_GRAPH_FILE = "onnx/model.onnx"
INDEX_FILE = "model.safetensors.index.json"
REFERENCE_FILE = "reference.safetensors"  # an import writes it
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")

# The names under which models keep what `input_type` means.
PROMPT_NAMES: dict[str, Purpose] = {
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
class ModelFolder:
    """A folder that can be imported; `path` is where it lies."""

    path: Path
    config: Mapping[str, Any]
    head: Head
    assumed_head: bool  # there is no modules.json that says it
    prompts: Mapping[Purpose, str]
    default_prompt: Purpose | None
    max_input_tokens: int
    lower_case: bool  # sentence-transformers puts texts into lower case first
    weights: tuple[str, ...]  # safetensors files, from the folder; empty if there are none
    told: tuple[Told, ...] = ()  # who says each of these; for the head, `head.told`

    @property
    def architecture(self) -> str:
        """As transformers calls it."""
        return str(self.config["model_type"])

    @property
    def transformer_weights(self) -> tuple[str, ...]:
        """The files of weights without those of the dense layers."""
        dense = {layer.weights for layer in self.head.dense}
        return tuple(name for name in self.weights if name not in dense)

    @property
    def graph(self) -> Path | None:
        """The ONNX graph that the publisher made, if there is one."""
        path = self.path / PUBLISHED_GRAPH_FILE
        return path if path.is_file() else None


def read_folder(
    path: Path,
    *,
    names: tuple[str, ...] = (),
    pooling: PoolingMode | None = None,
    normalize: bool | None = None,
) -> ModelFolder:
    """Read a folder's own description.

    Args:
        names: by which the model may be known; a folder without modules.json has the pooling and
            normalisation that are published for one of them.
        pooling, normalize: what a person says of a folder without modules.json.

    Raises:
        ImportRefused: the folder is none, needs what is not supported, or leaves a guess.
    """
    _check_is_folder(path)
    if not (path / CONFIG_FILE).is_file():
        raise ImportRefused(f"{path}: no {CONFIG_FILE}: not a folder of a transformer model")
    config = read_json(path / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise ImportRefused(f"{path / CONFIG_FILE}: says no model_type")
    check_source(path)
    head = choose_head(
        path,
        names=names,
        made_from=str(config.get("_name_or_path", "")),
        pooling=pooling,
        normalize=normalize,
    )
    prompts, default_prompt = _read_prompts(path)
    sentence_bert = read_json_if_there(path / SENTENCE_BERT_FILE)
    max_input_tokens, length_source = _max_input_tokens(path, config, sentence_bert)
    lower_case = sentence_bert.get("do_lower_case") is True
    return ModelFolder(
        path=path,
        config=config,
        head=head,
        assumed_head=not is_there(path / MODULES_FILE),
        prompts=prompts,
        default_prompt=default_prompt,
        max_input_tokens=max_input_tokens,
        lower_case=lower_case,
        weights=_find_weights(path, head),
        told=(
            Told("longest input", f"{max_input_tokens:,} tokens", length_source),
            _tell_lower_case(sentence_bert),
        ),
    )


def _tell_lower_case(sentence_bert: Mapping[str, Any]) -> Told:
    if sentence_bert.get("do_lower_case") is True:
        return Told("lower case", "every text, before the tokenizer", SENTENCE_BERT_FILE)
    silent = "" if "do_lower_case" in sentence_bert else " does not say it"
    return Told("lower case", f"left to {TOKENIZER_FILE}", f"{SENTENCE_BERT_FILE}{silent}")


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


def _read_prompts(
    path: Path,
) -> tuple[dict[Purpose, str], Purpose | None]:
    file = path / PROMPTS_FILE
    config = read_json_if_there(file)
    named = config.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise ImportRefused(f"{file}: prompts must be texts by name")
    prompts: dict[Purpose, str] = {}
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
) -> tuple[int, str]:
    """Where sentence-transformers cuts: its own setting, else the tokenizer's within positions.

    Returns:
        The number of tokens, and the file that says it.
    """
    own, source = sentence_bert.get("max_seq_length"), SENTENCE_BERT_FILE
    if own is None:
        tokenizer = read_json_if_there(path / TOKENIZER_CONFIG_FILE)
        positions = next((config[key] for key in POSITIONS if key in config), None)
        found = (
            (tokenizer.get("model_max_length"), TOKENIZER_CONFIG_FILE),
            (positions, CONFIG_FILE),
        )
        limits = [(limit, file) for limit, file in found if isinstance(limit, int | float)]
        own, source = min(limits, default=(None, ""))
    if isinstance(own, bool) or not isinstance(own, int | float) or not 1 <= own < 10_000_000:
        raise ImportRefused(f"{path}: says nowhere how many tokens a text may have")
    return int(own), source


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
    if not files and pickles and not (path / PUBLISHED_GRAPH_FILE).is_file():
        raise ImportRefused(
            f"{path}: weights only as {pickles[0]}, which can run code when it is read; convert "
            "them to safetensors where that code may run"
        )
    if files:
        files += [layer.weights for layer in head.dense]
    for name in files:
        if not stays_below(name):
            raise ImportRefused(f"{path / INDEX_FILE}: {name} lies outside the folder")
        if not name.endswith(".safetensors") or name == REFERENCE_FILE:
            raise ImportRefused(f"{path / INDEX_FILE}: {name} cannot be a file of weights")
        if not (path / name).is_file():
            raise ImportRefused(f"{path / name}: No such file")
    return tuple(files)
