"""A folder with code of its own, and whether transformers' class computes the same without it.

Code of a folder is never run. Where it is left out, the weights may fit transformers' class for
`model_type` and be another model all the same: jina v2 has other positions than BERT, gte-Qwen2
attends in both directions (huggingface/sentence-transformers#3140, embeddings-benchmark/mteb#4935).
So the class counts for a folder only if nothing in it says otherwise, or if both are known to
compute the same. Pure functions of files; any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.errors import ImportRefused
from server.importing.json_files import read_json_if_there

_CODE = ("configuration*.py", "modeling*.py")  # names by which transformers' hub code goes


@dataclass(frozen=True, slots=True)
class KnownCode:
    """Published code that transformers' class is known to replace; a folder's copy is not read."""

    evidence: str
    owners: tuple[str, ...]  # of the hub's repositories in which it lies
    files: tuple[str, ...]
    model: str  # the class that `AutoModel` must name; others of its file are other models
    # What the code knows and the class does not: only with these values are they the same.
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    # How the code calls what the class reads under another name.
    renamed: Mapping[str, str] = field(default_factory=dict)


KNOWN: Mapping[str, KnownCode] = {
    "nomic_bert": KnownCode(
        "the published modeling_hf_nomic_bert.py and transformers 5.23 were run here with the same "
        "random weights: largest difference 5.7e-06 at a mean size of 1.2, padded. transformers' "
        "tests/models/nomic_bert has values of nomic-ai/nomic-embed-text-v1.5",
        owners=("nomic-ai", "Snowflake"),
        files=("configuration_hf_nomic_bert.py", "modeling_hf_nomic_bert.py"),
        model="NomicBertModel",
        only={
            "activation_function": ("swiglu",),
            "causal": (False,),
            "num_experts": (None, 0),
            "parallel_block": (False,),
            "prenorm": (False,),
            "rotary_emb_fraction": (1.0,),
            "rotary_emb_interleaved": (False,),
            "rotary_emb_scale_base": (None,),
            "use_rms_norm": (None, False),
        },
        renamed={
            "layer_norm_epsilon": "layer_norm_eps",
            "n_embd": "hidden_size",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "n_layer": "num_hidden_layers",
            "rotary_emb_base": "rope_parameters.rope_theta",
        },
    ),
    "gte": KnownCode(
        "transformers' tests/models/gte reads Snowflake/snowflake-arctic-embed-m-v2.0 as published, "
        "without its code, and has its values",
        owners=("Snowflake",),
        files=("configuration_hf_alibaba_nlp_gte.py", "modeling_hf_alibaba_nlp_gte.py"),
        model="GteModel",
        only={"layer_norm_type": ("layer_norm",), "logn_attention_scale": (False,)},
    ),
}
# `position_embedding_type` is no setting of transformers' classes any more (5.23), but for these.
# Any other value than that of all of them is told in silence: "alibi", "relative_key", "rotary".
_POSITIONS = {"gte": ("rope",), "esm": ("absolute", "rotary")}
_ONLY_POSITIONS = (None, "absolute")
# What stands behind an architecture's name in transformers' classes: BertModel, BertForMaskedLM,
# BertLMHeadModel, T5EncoderModel, T5WithLMHeadModel, MarianMTModel, Gemma3TextModel, FunnelBaseModel.
_CLASS_END = (
    r"(text)?(base|question|context)?(encoder|decoder|mt)?"
    r"((withlmhead|lmhead|doubleheads|pretrained)?model(withlmhead)?|for[a-z]\w*)?"
)
# Names of one setting in transformers' architectures; a class leaves out those of others unread.
_SPELLINGS = (
    ("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "rms_norm_eps"),
    ("hidden_act", "hidden_activation", "activation_function", "activation"),
    ("num_attention_heads", "n_heads", "n_head", "num_heads"),
)
# Its model types whose classes have another name (its MODEL_MAPPING_NAMES).
_NAMED_OTHERWISE = {
    "gpt-sw3": "gpt2",
    "hunyuan_v1_dense": "hunyuandensev1",
    "hunyuan_v1_moe": "hunyuanmoev1",
    "internlm3": "llama",
    "iquestcoder": "llama",
}
# Classes of others that are transformers' own, but for the pooling.
_PLAIN_CLASSES = {
    "bert": (
        "Contriever",
    ),  # facebookresearch/contriever, src/contriever.py: BertModel, mean pooled
}


def why_not_stock(path: Path, config: Mapping[str, Any], max_input_tokens: int) -> str | None:
    """Why transformers' class for the folder's config would be another model; None if it is not.

    Args:
        config: the folder's config.json.
        max_input_tokens: the longest text that the folder is to embed.

    Raises:
        ImportRefused: config.json cannot be understood.
    """
    model_type = str(config["model_type"])
    known = KNOWN.get(model_type)
    strange = [
        named
        for auto_class, named in _references(path / "config.json", config)
        if known is None or not _is_known(auto_class, named, known)
    ]
    files = _files(path, _CODE)
    strange += [file for file in files if known is None or file not in known.files]
    if strange:
        return (
            f"its own code ({', '.join(dict.fromkeys(strange))}) would have to be run, which is "
            f"never done; {model_type} of transformers without it is another model"
        )
    strange = _foreign_classes(model_type, config)
    if strange:
        return (
            f"config.json says model_type {model_type}, but its architectures name "
            f"{', '.join(strange)}, which is no class of transformers' {model_type}; where the "
            "model's card says that it is one all the same, take that name away"
        )
    for key, values in ({} if known is None else known.only).items():
        if key in config and config[key] not in values:
            return _unread(key, config[key])
    positions = config.get("position_embedding_type")
    if positions not in (*_ONLY_POSITIONS, *_POSITIONS.get(model_type, ())):
        return _unread("position_embedding_type", positions)
    return _why_not_so_long(config, max_input_tokens) if model_type == "nomic_bert" else None


def check_tokenizer_code(file: Path) -> None:
    """Refuse a tokenizer of the folder's own, which no graph holds; tokenizer.json may be another.

    Args:
        file: its tokenizer_config.json, which need not be there.

    Raises:
        ImportRefused: there is one.
    """
    named = [name for _, name in _references(file, read_json_if_there(file))]
    named += _files(file.parent, ("tokenization*.py",))
    if named:
        raise ImportRefused(
            f"{file.parent}: its tokenizer's own code ({', '.join(dict.fromkeys(named))}) would have to be "
            "run, which is never done; where it may be trusted, save what it does as a tokenizer of "
            f"transformers, and take the code and auto_map of {file.name} away"
        )


def renamed_settings(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """What the config says under a name that transformers' class does not read, if it is known to be.

    Yields:
        The name, the class's own, with a dot before a key inside it, and the value.
    """
    known = KNOWN.get(str(config["model_type"]))
    for theirs, ours in ({} if known is None else known.renamed).items():
        if config.get(theirs) is not None:
            yield theirs, ours, config[theirs]


def misspelt_settings(
    config: Mapping[str, Any], read: Collection[str]
) -> Iterator[tuple[str, str, Any]]:
    """What the config says as another architecture spells it, and not as its own class does.

    Args:
        read: names that transformers' class for it reads.

    Yields:
        The name, the class's own, and the value.
    """
    for spellings in _SPELLINGS:
        own = [name for name in spellings if name in read]
        if any(name in config for name in own):
            continue
        for theirs in spellings:
            if own and config.get(theirs) is not None:
                yield theirs, own[0], config[theirs]


def _references(file: Path, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `auto_map` names: the auto class, and REPOSITORY--FILE.CLASS or FILE.CLASS."""
    named = config.get("auto_map") or {}
    if not isinstance(named, dict):  # the older form of tokenizers
        named = {"AutoTokenizer": named}
    found: list[tuple[str, str]] = []
    for auto_class, value in named.items():
        several = value if isinstance(value, list) else [value]
        if not all(one is None or isinstance(one, str) for one in several):
            raise ImportRefused(f"{file}: auto_map must name classes")
        found += [(auto_class, one) for one in several if one]
    return sorted(found)


def _foreign_classes(model_type: str, config: Mapping[str, Any]) -> list[str]:
    """Classes in `architectures` that are not those of `model_type`, by the name that both share.

    Weights may fit all the same: RoBERTa's fit BERT, whose positions begin elsewhere.
    """
    named = config.get("architectures")
    plain = _PLAIN_CLASSES.get(model_type, ())
    own = _bare(_NAMED_OTHERWISE.get(model_type, model_type))
    own = own.removesuffix("model").removesuffix("text")
    return [
        one
        for one in (named if isinstance(named, list) else [])
        if isinstance(one, str)
        and one not in plain
        and not re.fullmatch(own + _CLASS_END, _bare(one))
    ]


def _bare(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _files(path: Path, patterns: tuple[str, ...]) -> list[str]:
    return sorted(file.name for pattern in patterns for file in path.glob(pattern))


def _is_known(auto_class: str, named: str, known: KnownCode) -> bool:
    """Whether an entry of `auto_map` is of the published code."""
    repository, _, local = named.rpartition("--")
    module, _, name = local.partition(".")
    owned = not repository or repository.partition("/")[0] in known.owners
    is_model = auto_class != "AutoModel" or name == known.model
    return owned and is_model and f"{module}.py" in known.files


def _why_not_so_long(config: Mapping[str, Any], max_input_tokens: int) -> str | None:
    """The code of nomic stretches the positions of texts that are longer than those of the training."""
    trained, rope = config.get("max_trained_positions", 2048), config.get("rope_parameters")
    if not config.get("rotary_scaling_factor"):
        return None
    if isinstance(rope, dict) and rope.get("rope_type") == "dynamic":  # then the class does so, too
        return None
    if isinstance(trained, int) and max_input_tokens <= trained:
        return None
    return (
        f"config.json says rotary_scaling_factor = {config['rotary_scaling_factor']} for texts of "
        f"more than {trained} tokens, which transformers' class would leave out "
        f"(--max-input-tokens {trained} has them cut)"
    )


def _unread(key: str, value: Any) -> str:
    return f"config.json says {key} = {value!r}, which transformers' class would leave out"
