"""The folders of docs/how-to/import-checks.md whose line costs no export: a maker for each row.

The key is the row's first cell on the page. The page is compared with what an import prints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from server.importing.plan import Wishes
from tests.importing import strange_folders as strange
from tests.importing.folders import DIM, change_json
from tests.importing.test_layouts import move_transformer

Change = Callable[[Path], object]
QUERY = "encoder.layer.0.attention.self.query"
LORA = {
    "peft_type": "LORA",
    "base_model_name_or_path": "organisation/base",
    "r": 2,
    "lora_alpha": 6,
    "target_modules": ["query"],
}


@dataclass(frozen=True)
class Checked:
    """What a person has, made below an empty folder from a sound tiny model."""

    make: Callable[[Path, Path], Path]  # the empty folder and the sound model's
    wishes: Wishes = field(default_factory=Wishes)
    architecture: str = "bert"  # of the sound model


def no_model(make: strange.Make) -> Checked:
    """Something that is not made from a sound model."""
    return Checked(lambda place, sound: make(place))


def but(
    *changes: Change, name: str = "model", architecture: str = "bert", **wishes: Any
) -> Checked:
    """The sound folder with these changes."""

    def make(place: Path, sound: Path) -> Path:
        folder = place / name
        shutil.copytree(sound, folder)
        for change in changes:
            change(folder)
        return folder

    return Checked(make, Wishes(**wishes), architecture)


def said(file: str, **keys: Any) -> Change:
    """Keys of a JSON file set, or taken away by None."""
    return lambda folder: change_json(folder / file, **keys)


def moved_a_byte(folder: Path) -> None:
    """The header says of the last tensor that it begins a number earlier."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    offsets = max(tensors, key=lambda entry: entry["data_offsets"][1])["data_offsets"]
    offsets[:] = [offset - 4 for offset in offsets]
    changed = json.dumps(header).encode()
    file.write_bytes(len(changed).to_bytes(8, "little") + changed + content[8 + length :])


def gone(*files: str) -> Change:
    """Files or folders taken away."""

    def change(folder: Path) -> None:
        for name in files:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return change


def text(file: str, content: str = "") -> Change:
    """A file with this content."""

    def change(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content)

    return change


def tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Other tensors in place of the sound ones."""

    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file)

    return apply


def without(part: str) -> Change:
    """No tensor whose name has this part."""
    return tensors(lambda there: {name: value for name, value in there.items() if part not in name})


def renamed(old: str, new: str) -> Change:
    """Another spelling of the tensors' names."""
    return tensors(lambda there: {name.replace(old, new): value for name, value in there.items()})


def added(**more: Any) -> Change:
    """More tensors; two underscores stand for a dot."""
    named = {name.replace("__", "."): value for name, value in more.items()}
    return tensors(lambda there: there | named)


def adapter(*, whole: bool = False, **config: Any) -> Change:
    """An adapter's folder; with the model's whole weights beside it if told so."""

    def change(folder: Path) -> None:
        (folder / "adapter_config.json").write_text(json.dumps(LORA | config))
        halves = {"A": np.ones((2, DIM), "f4"), "B": np.ones((DIM, 2), "f4")}
        named = {f"base_model.model.{QUERY}.lora_{side}.weight": n for side, n in halves.items()}
        save_file(named, folder / "adapter_model.safetensors")
        if not whole:
            gone("model.safetensors", "config.json", "modules.json")(folder)

    return change


def beside_its_base(place: Path, sound: Path) -> Path:
    """An adapter that names its base, which lies beside it."""
    shutil.copytree(sound, place / "base")
    make = but(adapter(base_model_name_or_path="../base")).make
    return make(place, sound)


NOMIC = "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"
JINA = "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
NO_HEAD = gone("modules.json", "1_Pooling", "2_Normalize", "config_sentence_transformers.json")
SENTENCE = "config_sentence_transformers.json"
TOKENIZER = "tokenizer_config.json"
MODULES = "modules.json"
MANY = {f"purpose {number}": "x" for number in range(257)}


def own_module(folder: Path) -> None:
    """The first module is a class of the folder's own."""
    modules = json.loads((folder / MODULES).read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / MODULES).write_text(json.dumps(modules))


def two_of_one_name(folder: Path) -> None:
    """All modules have the first one's name."""
    modules = json.loads((folder / MODULES).read_text())
    named = [module | {"name": modules[0]["name"]} for module in modules]
    (folder / MODULES).write_text(json.dumps(named))


def no_end_token(folder: Path) -> None:
    """The tokenizer puts nothing behind a text."""
    content = json.loads((folder / "tokenizer.json").read_text())
    single = content["post_processor"]["single"]
    content["post_processor"]["single"] = [
        one for one in single if one.get("SpecialToken", {}).get("id") != "[SEP]"
    ]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def only_vocabulary(folder: Path) -> None:
    """The tokenizer as it was before tokenizer.json."""
    known = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(known, key=known.get)) + "\n")
    gone("tokenizer.json")(folder)


def truncated_left(folder: Path) -> None:
    """tokenizer.json cuts texts at their beginning."""
    cut = {"direction": "Left", "max_length": 32, "strategy": "LongestFirst", "stride": 0}
    change_json(folder / "tokenizer.json", truncation=cut)


CHECKED: dict[str, Checked] = {
    # a path
    "the name of a model on the hub": no_model(lambda place: Path("intfloat/e5-base-v2")),
    "the hub's address": no_model(lambda place: Path("https://huggingface.co/intfloat/e5-base-v2")),
    "a wheel": no_model(strange.file("model-1.0-py3-none-any.whl")),
    "an archive": no_model(strange.file("model.tar.gz")),
    "a bundle of this software": no_model(strange.bundle),
    "a GGUF file": no_model(strange.file("model-q8_0.gguf")),
    "one file of a model": no_model(strange.file("model.safetensors")),
    "the hub client's cache": no_model(lambda place: strange.cached(strange.COMMIT)(place).parent),
    "a model in that cache, with two snapshots": no_model(
        strange.cached(strange.COMMIT, strange.OTHER, main=strange.OTHER)
    ),
    "a folder around the model's": no_model(strange.around),
    "a folder that an import made": no_model(strange.model(files={"card.toml": ""})),
    # a copy
    "an empty folder": no_model(strange.empty),
    "a clone without Git LFS": no_model(strange.replaced("model.safetensors", strange.POINTER)),
    "a download that was a web page": no_model(
        strange.replaced("tokenizer.json", "<!doctype html><html>")
    ),
    "a download that the hub refused": no_model(
        strange.replaced("config.json", "Access to model org/name is restricted.")
    ),
    "an empty file": no_model(strange.replaced("tokenizer.json", "")),
    "weights that are cut off": no_model(strange.cut_off),
    "weights whose tensors lie elsewhere": but(moved_a_byte),
    "a snapshot copied without its blobs": no_model(strange.dangling),
    "a shard that is missing": no_model(strange.shards(1)),
    "shards without their index": no_model(strange.shards(1, 2, index=False)),
    "a download that was not finished": no_model(strange.unfinished),
    # another kind
    "a reranker": no_model(
        strange.model(
            architectures=["XLMRobertaForSequenceClassification"], id2label={"0": "LABEL_0"}
        )
    ),
    "a classifier": no_model(strange.model(architectures=["BertForTokenClassification"])),
    "a ColBERT": no_model(strange.model(architectures=["HF_ColBERT"])),
    "a SPLADE": no_model(strange.model("MLMTransformer", "SpladePooling")),
    "static embeddings (model2vec)": no_model(
        strange.model(model_type="model2vec", architectures=["StaticModel"])
    ),
    "a CLIP": no_model(strange.model("CLIPModel")),
    "a model that writes texts (BART)": no_model(
        strange.model(model_type="bart", is_encoder_decoder=True)
    ),
    "a Longformer": no_model(strange.model(*strange.POOLED, model_type="longformer")),
    "weights quantised by GPTQ": no_model(
        strange.model(quantization_config={"quant_method": "gptq"})
    ),
    "GGUF and no other weights": no_model(strange.without_weights("model-q8_0.gguf")),
    "weights of TensorFlow only": no_model(strange.without_weights("tf_model.h5")),
    "weights as a pickle only": but(
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    ),
    # tensors
    "one bias is missing": but(without(f"{QUERY}.bias")),
    "all LayerNorms are missing": but(without("LayerNorm")),
    "a wrapper's names (`base_layer`)": but(renamed(f"{QUERY}.weight", f"{QUERY}.base_layer.weight")),
    "an unexpected prefix": but(
        tensors(lambda there: {f"encoder_q.{name}": value for name, value in there.items()})
    ),
    "unmerged adapter weights (`lora_A`)": but(
        added(**{f"{QUERY}.lora_A.weight".replace(".", "__"): np.ones((2, DIM), "f4")})
    ),
    "a tensor of another shape": but(
        added(**{f"{QUERY}.bias".replace(".", "__"): np.ones(2 * DIM, "f4")})
    ),
    "weights as integers": but(
        added(**{f"{QUERY}.bias".replace(".", "__"): np.ones(DIM, "i1")})
    ),
    "`position_ids` that do not count": but(
        added(embeddings__position_ids=np.arange(64)[None] + 1)
    ),
    "more layers than tensors": but(said("config.json", num_hidden_layers=100_000)),
    "a number that is NaN": but(
        added(**{f"{QUERY}.bias".replace(".", "__"): np.full(DIM, np.nan, "f4")})
    ),
    "a pooler and `position_ids` too many": but(
        added(
            pooler__dense__weight=np.ones((DIM, DIM), "f4"),
            embeddings__position_ids=np.arange(64)[None],
        )
    ),
    # code
    "`auto_map` names code (jina v2)": but(said("config.json", auto_map={"AutoModel": JINA})),
    "a modeling file": but(text("modeling_bert.py")),
    "a module of its own in `modules.json`": but(own_module),
    "a tokenizer with code": but(
        said(TOKENIZER, auto_map={"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]})
    ),
    "a setting that the class leaves out (ALiBi)": but(
        said("config.json", position_embedding_type="alibi")
    ),
    "another architecture's class": but(said("config.json", architectures=["RobertaModel"])),
    "a setting in another architecture's spelling": but(
        said("config.json", layer_norm_eps=None, norm_eps=1e-5)
    ),
    "settings that change `config.json`": but(
        said("sentence_bert_config.json", config_kwargs={"hidden_act": "relu"})
    ),
    "`auto_map` names nomic's code": but(
        said("config.json", auto_map={"AutoModel": NOMIC}), architecture="nomic_bert"
    ),
    # pooling
    "no `modules.json`, a name that nobody knows": but(NO_HEAD, name="my-model"),
    "the same, trained from a model that the table has": but(
        NO_HEAD, said("config.json", _name_or_path="intfloat/e5-base-v2"), name="my-model"
    ),
    "no `modules.json`, a name of the table": but(NO_HEAD, name="bge-small-en-v1.5"),
    "`--pooling` beside a `modules.json`": but(pooling="cls"),
    "max pooling": but(said("1_Pooling/config.json", pooling_mode="max")),
    "another pooling than the table has": but(name="bge-small-en-v1.5"),
    "two modules of one name": but(two_of_one_name),
    "dense layers without a `modules.json`": but(
        NO_HEAD, text("2_Dense/config.json", "{}"), name="my-model"
    ),
    # tokenizer
    "`add_eos_token`, and no end token": but(
        no_end_token, said(TOKENIZER, add_eos_token=True, eos_token="[SEP]")
    ),
    "`add_eos_token` is false, and there is one": but(
        said(TOKENIZER, add_eos_token=False, eos_token="[SEP]", sep_token=None)
    ),
    "the last token's vector, and no end token": but(
        no_end_token,
        said("1_Pooling/config.json", pooling_mode="lasttoken"),
        said(TOKENIZER, sep_token=None),
    ),
    "`do_lower_case` against `tokenizer.json`": but(
        said(TOKENIZER, tokenizer_class="BertTokenizer", do_lower_case=True)
    ),
    "a tokenizer's class that nobody knows": but(
        said(TOKENIZER, tokenizer_class="BertJapaneseTokenizer")
    ),
    "a chat template": but(said(TOKENIZER, chat_template="{{ messages }}")),
    "`vocab.txt` in place of `tokenizer.json`": but(
        only_vocabulary, said(TOKENIZER, tokenizer_class="BertTokenizer", do_lower_case=False)
    ),
    "`vocab.txt` with other numbers": but(text("vocab.txt", "[UNK]\n[PAD]\n")),
    "texts cut at their beginning": but(truncated_left),
    "a token that only the settings name": but(
        said(TOKENIZER, added_tokens_decoder={"96": {"content": "the", "special": False}})
    ),
    "an added token of another number": but(
        said(TOKENIZER, added_tokens_decoder={"7": {"content": "[MASK]", "special": True}})
    ),
    # prompts
    "prompts of other names": but(
        said(
            SENTENCE,
            prompts={"retrieval.query": "Q: ", "retrieval.passage": "D: ", "STS": "S: "},
        )
    ),
    "two names that mean queries": but(
        said(SENTENCE, prompts={"query": "Q: ", "search_query": "find: "})
    ),
    "more than 256 prompts": but(said(SENTENCE, prompts=MANY)),
    "a default prompt that is not there": but(said(SENTENCE, default_prompt_name="absent")),
    # graphs
    "several ONNX graphs": but(
        text("onnx/a.onnx"), text("onnx/b.onnx"), graph="published"
    ),
    "no safetensors and no graph": but(gone("model.safetensors")),
    # layout and length
    "the transformer in `0_Transformer`": but(move_transformer),
    "a T5 with its decoder": but(architecture="t5"),
    "a RoBERTa that says all its positions": but(
        said("sentence_bert_config.json", max_seq_length=66), architecture="xlm-roberta"
    ),
    "a wish for where texts are cut": but(max_input_tokens=16),
    "more tokens than positions": but(max_input_tokens=512),
    "nothing says how long a text may be": but(
        said("sentence_bert_config.json", max_seq_length=None),
        said(TOKENIZER, model_max_length=None),
        said("config.json", max_position_embeddings=None),
    ),
    # adapters
    "an adapter whose base is not there": but(adapter()),
    "an adapter beside its base": Checked(beside_its_base),
    "an adapter and whole weights": but(adapter(whole=True)),
    "an adapter that is not plain LoRA (DoRA)": but(adapter(use_dora=True), base=Path("BASE")),
}  # fmt: skip
