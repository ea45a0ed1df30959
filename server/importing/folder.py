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
from server.catalog.names import is_card_name
from server.errors import ImportRefused, unusable
from server.importing.head import MODULES_FILE, Head, find_transformer
from server.importing.head_choice import choose_head
from server.importing.input_length import InputLength, Said, choose_length, count_positions
from server.importing.json_files import is_there, read_json, read_json_if_there
from server.importing.own_code import check_tokenizer_code, why_not_stock
from server.importing.prompts import Prompts, read_prompts
from server.importing.published_graph import find_graphs
from server.importing.tokenizer_source import check_source
from server.importing.told import Told
from server.importing.weight_files import find_weights
from server.program.command_lines import own_command

CONFIG_FILE = "config.json"
# The first one that is there; the others are of models from before sentence-transformers 2.0.
SENTENCE_BERT_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that can be imported; `path` is where it lies."""

    path: Path
    config: Mapping[str, Any]
    head: Head
    lacks_modules: bool  # no modules.json says what the head is
    prompts: Prompts
    max_input_tokens: int
    lower_case: bool  # sentence-transformers puts texts into lower case first
    weights: tuple[str, ...]  # safetensors files, from the folder; empty if there are none
    graphs: tuple[str, ...] = ()  # the publisher's; more than one if none is the usual one
    transformer: str = ""  # the folder of the transformer's files, from the model's
    cut_as_published: bool = True  # sentence-transformers cuts texts there, too
    given: Path | None = None  # the folder that was named, where `path` was made of it
    told: tuple[Told, ...] = ()  # who says each of these; for the head, `head.told`

    @property
    def architecture(self) -> str:
        """As transformers calls it."""
        return str(self.config["model_type"])

    @property
    def not_stock(self) -> str | None:
        """Why transformers' class would compute another model; None if it computes this one."""
        return why_not_stock(self.transformer_path, self.config, self.max_input_tokens)

    @property
    def transformer_weights(self) -> tuple[str, ...]:
        """The files of weights without those of the dense layers."""
        dense = {layer.weights for layer in self.head.dense}
        return tuple(name for name in self.weights if name not in dense)

    @property
    def given_path(self) -> Path:
        """The folder that was named, which tells what the model is called and where it is from."""
        return self.given or self.path

    @property
    def transformer_path(self) -> Path:
        """Where the transformer's config.json and the tokenizer's files lie."""
        return self.path / self.transformer


def read_folder(
    path: Path,
    *,
    names: tuple[str, ...] = (),
    pooling: PoolingMode | None = None,
    normalize: bool | None = None,
    onnx: str | None = None,
    max_input_tokens: int | None = None,
) -> ModelFolder:
    """Read a folder's own description.

    Args:
        names: the model's own, by which the table of families may know it.
        pooling, normalize: what a person says of a folder without modules.json.
        onnx: which of the publisher's graphs is wished for, from the folder.
        max_input_tokens: where a person has texts cut.

    Raises:
        ImportRefused: the folder is none, needs what is not supported, or leaves a guess.
    """
    _check_is_folder(path)
    transformer = find_transformer(path)
    place = path / transformer
    config = _read_config(place)
    head = choose_head(
        path,
        names=names,
        made_from=str(config.get("_name_or_path", "")),
        pooling=pooling,
        normalize=normalize,
    )
    file = sentence_bert_file(place)
    sentence_bert = read_json_if_there(file)
    length = _choose_length(path, transformer, config, sentence_bert, max_input_tokens)
    graphs = find_graphs(path, transformer, onnx)
    return ModelFolder(
        path=path,
        transformer=transformer,
        config=config,
        head=head,
        lacks_modules=not is_there(path / MODULES_FILE),
        prompts=read_prompts(path),
        max_input_tokens=length.tokens,
        cut_as_published=length.is_own,
        lower_case=sentence_bert.get("do_lower_case") is True,
        weights=find_weights(path, transformer, head, has_graph=bool(graphs)),
        graphs=graphs,
        told=(
            length.told,
            _tell_lower_case(sentence_bert, Path(transformer, file.name).as_posix()),
        ),
    )


def sentence_bert_file(place: Path) -> Path:
    """What sentence-transformers says of the transformer in this folder; need not be there."""
    files = [place / name for name in SENTENCE_BERT_FILES]
    return next(filter(is_there, files), files[0])


def _read_config(place: Path) -> dict[str, Any]:
    """The transformer's config.json; what else there has to be lies beside it."""
    if not (place / CONFIG_FILE).is_file():
        raise ImportRefused(f"{place}: no {CONFIG_FILE}: not a folder of a transformer model")
    config = read_json(place / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise ImportRefused(f"{place / CONFIG_FILE}: says no model_type")
    check_source(place)
    check_tokenizer_code(place / TOKENIZER_CONFIG_FILE)
    return config


def _tell_lower_case(sentence_bert: Mapping[str, Any], file: str) -> Told:
    if sentence_bert.get("do_lower_case") is True:
        return Told("lower case", "every text, before the tokenizer", file)
    silent = "" if "do_lower_case" in sentence_bert else " does not say it"
    return Told("lower case", f"left to {TOKENIZER_FILE}", f"{file}{silent}")


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


def _choose_length(
    path: Path,
    transformer: str,
    config: Mapping[str, Any],
    sentence_bert: Mapping[str, Any],
    wished: int | None,
) -> InputLength:
    tokenizer = read_json_if_there(path / transformer / TOKENIZER_CONFIG_FILE)

    def name(file: str) -> str:
        return Path(transformer, file).as_posix()

    return choose_length(
        str(path),
        count_positions(config),
        wished,
        sentence_bert=Said(
            sentence_bert.get("max_seq_length"), name(sentence_bert_file(path / transformer).name)
        ),
        tokenizer=Said(tokenizer.get("model_max_length"), name(TOKENIZER_CONFIG_FILE)),
        config_file=name(CONFIG_FILE),
    )
