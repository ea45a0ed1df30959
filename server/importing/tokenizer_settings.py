"""What a folder says of its tokenizer outside `tokenizer.json`.

The files are `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and
`sentence_bert_config.json`. What cannot be done as they say is refused here. Reads JSON and nothing
else; pure functions of files; any thread may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.errors import ImportRefused
from server.importing.folder import CONFIG_FILE, TOKENIZER_CONFIG_FILE, sentence_bert_file
from server.importing.json_files import read_json_if_there

TOKENS_FILE = "special_tokens_map.json"
CHAT_FILE = "chat_template.jinja"
ADDED_FILE = "added_tokens.json"

# transformers' classes with BERT's normaliser. They let `do_lower_case` (default: true),
# `strip_accents` and `tokenize_chinese_chars` (true) decide, whatever tokenizer.json holds:
# tokenization_bert.py and its kin, in transformers 4 and 5.
BERT_CLASSES = frozenset(
    {
        "BertTokenizer",
        "ConvBertTokenizer",
        "DistilBertTokenizer",
        "ElectraTokenizer",
        "FunnelTokenizer",
        "LayoutLMTokenizer",
        "LxmertTokenizer",
        "MPNetTokenizer",
        "MobileBertTokenizer",
        "SqueezeBertTokenizer",
    }
)
# Those that let `add_prefix_space` (default: false) decide likewise.
BYTE_LEVEL_CLASSES = frozenset(
    {
        "BartTokenizer",
        "DebertaTokenizer",
        "GPT2Tokenizer",
        "LEDTokenizer",
        "LongformerTokenizer",
        "RobertaTokenizer",
    }
)
# These hold nothing of their own: tokenizer.json alone is the tokenizer.
BARE_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
# The rest of those whose tokenizer is in tokenizer.json as a whole. Not here are classes that do
# more to a text than the file can say, such as BertJapaneseTokenizer, BertweetTokenizer.
_OTHER_CLASSES = frozenset(
    {
        "AlbertTokenizer",
        "BarthezTokenizer",
        "BigBirdTokenizer",
        "BloomTokenizer",
        "CLIPTokenizer",
        "CamembertTokenizer",
        "CodeGenTokenizer",
        "CodeLlamaTokenizer",
        "CohereTokenizer",
        "DPRContextEncoderTokenizer",
        "DPRQuestionEncoderTokenizer",
        "DebertaV2Tokenizer",
        "FNetTokenizer",
        "GPTNeoXTokenizer",
        "GemmaTokenizer",
        "HerbertTokenizer",
        "LlamaTokenizer",
        "MBart50Tokenizer",
        "MBartTokenizer",
        "MT5Tokenizer",
        "NllbTokenizer",
        "PegasusTokenizer",
        "Qwen2Tokenizer",
        "Qwen3_5Tokenizer",
        "RemBertTokenizer",
        "SplinterTokenizer",
        "T5Tokenizer",
        "XGLMTokenizer",
        "XLMRobertaTokenizer",
        "XLNetTokenizer",
    }
)
KNOWN_CLASSES = BERT_CLASSES | BYTE_LEVEL_CLASSES | BARE_CLASSES | _OTHER_CLASSES
# What transformers takes for a folder that names no class (its TOKENIZER_MAPPING_NAMES).
_BY_ARCHITECTURE = {
    "bert": "BertTokenizer",
    "camembert": "CamembertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "electra": "ElectraTokenizer",
    "mpnet": "MPNetTokenizer",
    "mt5": "T5Tokenizer",
    "nomic_bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "t5": "T5Tokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
# For a few architectures transformers 5 takes tokenizer.json whatever class is named.
_ALWAYS_BARE = frozenset({"modernbert"})
_SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
_MORE_SPECIAL_TOKENS = ("additional_special_tokens", "extra_special_tokens")  # a list, or by name
# What a call of the tokenizer may be told without another vector for a text.
_HARMLESS_CALL_SETTINGS = frozenset(
    {"padding", "pad_to_multiple_of", "return_tensors", "truncation", "return_attention_mask"}
)


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """The settings of one folder; `tokenizer_class` is transformers' name without `Fast`."""

    path: Path
    tokenizer_class: str
    values: Mapping[str, Any]
    added: Mapping[int, Mapping[str, Any]]  # tokens by id, with AddedToken's fields
    chat_template: bool  # there is one; a text to embed never goes through it

    def flag(self, name: str) -> bool | None:
        """A switch; None if the folder does not set it.

        Raises:
            ImportRefused: it is neither true nor false.
        """
        value = self.values.get(name)
        if not isinstance(value, bool | None):
            raise ImportRefused(
                f"{self.path / TOKENIZER_CONFIG_FILE}: {name} must be true or false"
            )
        return value

    def token(self, name: str) -> str | None:
        """How a special token such as `eos_token` is written; None if the folder names none."""
        return _content(self.values.get(name))

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """All that the folder names; transformers finds each in a text before it is split."""
        found = [self.token(name) for name in _SPECIAL_TOKENS]
        for name in _MORE_SPECIAL_TOKENS:
            listed = self.values.get(name) or ()
            several = list(listed.values()) if isinstance(listed, dict) else listed
            found += map(_content, several if isinstance(several, list) else ())
        return tuple(dict.fromkeys(token for token in found if token))


def read_settings(path: Path, config: Mapping[str, Any]) -> TokenizerSettings:
    """Read them; of two files that set the same, the one wins that transformers lets win.

    Args:
        config: the folder's config.json.

    Raises:
        ImportRefused: a file is broken, or a setting asks for what cannot be done.
    """
    own = read_json_if_there(path / TOKENIZER_CONFIG_FILE)
    listed = own.get("added_tokens_decoder")
    values = dict(own)
    if listed is None:  # else transformers does not read the older files
        values |= read_json_if_there(path / TOKENS_FILE)
    values |= _loading_settings(path)
    _refuse_impossible(path, values)
    return TokenizerSettings(
        path=path,
        tokenizer_class=_tokenizer_class(path, values, config),
        values=values,
        added=_added(path, listed),
        chat_template=bool(values.get("chat_template")) or (path / CHAT_FILE).exists(),
    )


def _tokenizer_class(path: Path, values: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    file = path / TOKENIZER_CONFIG_FILE
    architecture = str(config.get("model_type"))
    if architecture in _ALWAYS_BARE:
        return "TokenizersBackend"
    named = values.get("tokenizer_class") or config.get("tokenizer_class")
    if named is None:
        return _BY_ARCHITECTURE.get(architecture, "TokenizersBackend")
    name = str(named)
    if name not in KNOWN_CLASSES:
        name = name.removesuffix("Fast")
    if name not in KNOWN_CLASSES:
        file = file if values.get("tokenizer_class") else path / CONFIG_FILE
        raise ImportRefused(
            f"{file}: tokenizer_class {named} is none of those whose tokenizer tokenizer.json is "
            "known to hold as a whole"
        )
    return name


def _loading_settings(path: Path) -> dict[str, Any]:
    """What sentence-transformers passes on to the tokenizer when it loads it.

    Raises:
        ImportRefused: it would not read a text as it is.
    """
    file = sentence_bert_file(path)
    content = read_json_if_there(file)
    _refuse_other_texts(file, content)
    found: dict[str, Any] = {}
    for name in ("tokenizer_args", "processor_kwargs"):  # the older name and the newer one
        passed = _by_name(file, name, content.get(name))
        most, cut = passed.get("model_max_length"), content.get("max_seq_length")
        if isinstance(most, int | float) and not (isinstance(cut, int) and cut <= most):
            raise ImportRefused(f"{file}: {name} has model_max_length; say it in max_seq_length")
        found |= passed
    return found


def _refuse_other_texts(file: Path, content: Mapping[str, Any]) -> None:
    """What sentence-transformers would do to a text or to the config, and is not done here."""
    modalities = content.get("modality_config")
    if isinstance(modalities, dict) and "message" in modalities:
        raise ImportRefused(
            f"{file}: modality_config has `message`: texts go through a chat template, which is "
            "not supported"
        )
    calls = _by_name(file, "processing_kwargs", content.get("processing_kwargs"))
    for kind in ("common", "text"):
        for name in _by_name(file, f"processing_kwargs.{kind}", calls.get(kind)):
            if name not in _HARMLESS_CALL_SETTINGS:
                raise ImportRefused(f"{file}: processing_kwargs has {name}, which is not supported")
    for name in ("config_args", "config_kwargs"):  # the older name and the newer one
        changes = _by_name(file, name, content.get(name)).keys() - {"trust_remote_code"}
        if changes:
            raise ImportRefused(
                f"{file}: {name} changes {', '.join(sorted(changes))} of {CONFIG_FILE} "
                "when it is loaded, which is not supported; change it there"
            )
    if content.get("query_expansion"):
        raise ImportRefused(f"{file}: query_expansion is not supported")


def _by_name(file: Path, name: str, settings: object) -> dict[str, Any]:
    if not isinstance(settings, dict | None):
        raise ImportRefused(f"{file}: {name} must be settings by name")
    return settings or {}


def _refuse_impossible(path: Path, values: Mapping[str, Any]) -> None:
    file = path / TOKENIZER_CONFIG_FILE
    if values.get("truncation_side", "right") != "right":
        raise ImportRefused(
            f"{file}: truncation_side is {values['truncation_side']}: texts that are too long would "
            "lose their beginning, and here they lose their end; set it to right if that will do"
        )
    if values.get("split_special_tokens"):
        raise ImportRefused(f"{file}: split_special_tokens = true is not supported")
    if values.get("post_processor"):
        raise ImportRefused(
            f"{file}: has a post_processor of its own; it must be in tokenizer.json"
        )


def _added(path: Path, listed: object) -> dict[int, dict[str, Any]]:
    """Tokens that were added to the vocabulary, by id."""
    file = path / (TOKENIZER_CONFIG_FILE if listed is not None else ADDED_FILE)
    try:
        if isinstance(listed, dict):
            return {
                int(number): {**token, "content": token["content"]}
                for number, token in listed.items()
            }
        if listed is not None:
            raise TypeError
        older = read_json_if_there(file)
        return {int(number): {"content": token} for token, number in older.items()}
    except (TypeError, ValueError, KeyError):
        raise ImportRefused(f"{file}: added tokens must be tokens by their ids") from None


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None
