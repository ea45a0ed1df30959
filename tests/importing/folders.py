"""Tiny random models of every architecture, in folders as sentence-transformers saves them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

DIM = 48
MAX_TOKENS = 32
POSITIONS = 64
_SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
_CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "search query document clustering: passages to embed",
    "Zażółć gęślą jaźń, 你好 世界, 12345!",
] * 50


def _word_pieces() -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=POSITIONS,
    )


def _byte_pairs(special: list[str], template: str, **names: str) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    used = [(token, special.index(token)) for token in special if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=POSITIONS, **names
    )


def _roberta() -> Any:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    return _byte_pairs(special, "<s> $A </s>", pad_token="<pad>", cls_token="<s>", sep_token="</s>")


def _qwen() -> Any:
    end = "<|endoftext|>"
    return _byte_pairs([end], f"$A {end}", pad_token=end, eos_token=end, padding_side="left")


def _t5() -> Any:
    special = ["<pad>", "</s>", "<unk>"]
    return _byte_pairs(special, "$A </s>", pad_token="<pad>", eos_token="</s>")


def _gemma() -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    return _byte_pairs(special, "<bos> $A <eos>", pad_token="<pad>", eos_token="<eos>")


def _modernbert(vocabulary: int) -> Any:
    config = transformers.ModernBertConfig(
        vocab_size=vocabulary,
        max_position_embeddings=POSITIONS,
        local_attention=8,
        global_attn_every_n_layers=2,
        **{**_SIZES, "num_hidden_layers": 3},
        pad_token_id=0,
        cls_token_id=2,
        sep_token_id=3,
        bos_token_id=2,
        eos_token_id=3,
    )
    return transformers.ModernBertModel(config)


def _gemma3(vocabulary: int) -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=vocabulary,
        max_position_embeddings=POSITIONS,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        use_bidirectional_attention=True,  # as EmbeddingGemma
        **_SIZES,
    )
    return transformers.Gemma3TextModel(config)


def _t5_with_decoder(vocabulary: int) -> Any:
    sizes = {"d_model": DIM, "d_kv": 12, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return transformers.T5Model(transformers.T5Config(vocab_size=vocabulary, **sizes))


def _simple(config_class: Any, model_class: Any, **config: Any) -> Callable[[int], Any]:
    def make(vocabulary: int) -> Any:
        sizes = {**_SIZES, "max_position_embeddings": POSITIONS, **config}
        return model_class(config_class(vocab_size=vocabulary, **sizes))

    return make


_T = transformers
ARCHITECTURES: dict[str, tuple[Callable[[], Any], Callable[[int], Any]]] = {
    "bert": (_word_pieces, _simple(_T.BertConfig, _T.BertModel)),
    "distilbert": (
        _word_pieces,
        _simple(_T.DistilBertConfig, _T.DistilBertModel, dim=DIM, n_layers=2, n_heads=4, hidden_dim=96),
    ),
    "mpnet": (_roberta, _simple(_T.MPNetConfig, _T.MPNetModel, max_position_embeddings=66)),
    "xlm-roberta": (
        _roberta,
        _simple(_T.XLMRobertaConfig, _T.XLMRobertaModel, max_position_embeddings=66, pad_token_id=1),
    ),
    "modernbert": (_word_pieces, _modernbert),
    "nomic_bert": (_word_pieces, _simple(_T.NomicBertConfig, _T.NomicBertModel)),
    "qwen2": (_qwen, _simple(_T.Qwen2Config, _T.Qwen2Model, num_key_value_heads=2)),
    "t5": (_t5, _t5_with_decoder),
    "qwen3": (_qwen, _simple(_T.Qwen3Config, _T.Qwen3Model, num_key_value_heads=2, head_dim=16)),
    "gemma3_text": (_gemma, _gemma3),
}  # fmt: skip


def make_folder(
    place: Path,
    architecture: str = "bert",
    *,
    pooling: str = "mean",
    dense: Sequence[tuple[int, type[torch.nn.Module]]] = (),
    dense_bias: bool = True,
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
    default_prompt: str | None = None,
    dtype: torch.dtype = torch.float32,
    shard_bytes: int | None = None,
) -> Path:
    """A sentence-transformers folder with random weights; the same ones every time."""
    torch.manual_seed(0)
    make_tokenizer, make_model = ARCHITECTURES[architecture]
    tokenizer = make_tokenizer()
    raw = place.with_name(f"{place.name}-raw")
    make_model(len(tokenizer)).to(dtype).save_pretrained(raw)
    tokenizer.save_pretrained(raw)
    transformer = Transformer(str(raw), max_seq_length=MAX_TOKENS, model_kwargs={"dtype": dtype})
    modules: list[torch.nn.Module] = [transformer, Pooling(DIM, pooling_mode=pooling)]
    size = DIM
    for out_features, activation in dense:
        modules.append(Dense(size, out_features, dense_bias, activation()))
        size = out_features
    if normalize:
        modules.append(Normalize())
    SentenceTransformer(
        modules=modules, device="cpu", prompts=prompts, default_prompt_name=default_prompt
    ).save(str(place), create_model_card=False)
    if shard_bytes is not None:
        (place / "model.safetensors").unlink()
        transformer.model.save_pretrained(place, max_shard_size=shard_bytes)
    if architecture == "t5":  # as published before it was saved again: with its decoder
        shutil.copyfile(raw / "model.safetensors", place / "model.safetensors")
    shutil.rmtree(raw)
    return place


def export_published(folder: Path) -> Path:
    """Write onnx/model.onnx with token vectors, as publishers do; returns it."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.set_attn_implementation("eager")

    class TokenVectors(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            found = self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            )
            return found.last_hidden_state

    graph = folder / "onnx" / "model.onnx"
    graph.parent.mkdir()
    ids = torch.arange(2, 20).reshape(2, 9)
    axes = {0: "batch", 1: "tokens"}
    names = ("input_ids", "attention_mask", "token_type_ids")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            TokenVectors().eval(),
            (ids, torch.ones_like(ids), torch.zeros_like(ids)),
            graph,
            dynamo=True,
            input_names=list(names),
            output_names=["last_hidden_state"],
            dynamic_shapes=dict.fromkeys(names, axes),
            verbose=False,
        )
    return graph


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
