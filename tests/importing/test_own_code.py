"""A folder with code of its own is another model than transformers' class, unless that is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.errors import ImportRefused
from server.importing.folder import read_folder
from server.importing.own_code import check_tokenizer_code, renamed_settings, why_not_stock

NOMIC = {
    "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
    "AutoModelForMaskedLM": (
        "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining"
    ),
}
ARCTIC_LONG = {  # its code lies in the folder
    "AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "modeling_hf_nomic_bert.NomicBertModel",
}
ARCTIC = {
    "AutoConfig": "configuration_hf_alibaba_nlp_gte.GteConfig",
    "AutoModel": "modeling_hf_alibaba_nlp_gte.GteModel",
}
# As nomic-embed-text-v1.5 was published before transformers knew its class.
NOMIC_SETTINGS: dict[str, Any] = {
    "activation_function": "swiglu",
    "causal": False,
    "max_trained_positions": 2048,
    "n_embd": 768,
    "n_head": 12,
    "n_inner": 3072,
    "n_layer": 12,
    "n_positions": 8192,
    "parallel_block": False,
    "prenorm": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "use_rms_norm": False,
}
JINA = "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"
JINA_V3 = "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA"


def why(path: Path, model_type: str, *files: str, longest: int = 512, **config: Any) -> str | None:
    for file in files:
        (path / file).touch()
    return why_not_stock(path, {"model_type": model_type} | config, longest)


def test_a_folder_without_code_is_transformers_own_class(tmp_path: Path) -> None:
    for model_type in ("bert", "qwen2", "nomic_bert", "gte"):
        assert why(tmp_path, model_type, "handler.py", "convert.py") is None


@pytest.mark.parametrize(
    ("model_type", "reference"),
    [
        ("bert", JINA),  # jina v2: ALiBi
        ("xlm-roberta", JINA_V3),  # jina v3: rotary, one adapter a task
        ("qwen2", "modeling_qwen.Qwen2Model"),  # gte-Qwen2: both directions
        ("mistral", "modeling_gritlm7b.MistralForCausalLM"),  # GritLM: both directions
        ("new", "Alibaba-NLP/new-impl--modeling.NewModel"),  # gte-en-v1.5
        ("nomic_bert", "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicVisionModel"),
        ("nomic_bert", "somebody/else--modeling_hf_nomic_bert.NomicBertModel"),
        ("nomic_bert", "modeling_own.NomicBertModel"),
        ("bert", "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
        ("eurobert", "modeling_eurobert.EuroBertModel"),
    ],
)
def test_code_that_auto_map_names_makes_another_model(
    tmp_path: Path, model_type: str, reference: str
) -> None:
    assert why(tmp_path, model_type, auto_map={"AutoModel": reference}) == (
        f"its own code ({reference}) would have to be run, which is never done; {model_type} of "
        "transformers without it is another model"
    )


@pytest.mark.parametrize("file", ["modeling_qwen.py", "configuration_bert.py", "modeling.py"])
def test_a_file_of_code_makes_another_model_though_no_auto_map_names_it(
    tmp_path: Path, file: str
) -> None:
    found = why(tmp_path, "qwen2", file)
    assert found is not None
    assert found.startswith(f"its own code ({file}) would have to be run")


def test_all_code_is_named(tmp_path: Path) -> None:
    named = {"AutoModel": "modeling_a.A", "AutoConfig": "configuration_a.C"}
    found = why(tmp_path, "bert", "modeling_a.py", auto_map=named)
    assert found is not None
    assert "(configuration_a.C, modeling_a.A, modeling_a.py)" in found


def test_known_code_is_replaced_by_transformers_own_class(tmp_path: Path) -> None:
    assert why(tmp_path, "nomic_bert", auto_map=NOMIC, **NOMIC_SETTINGS) is None
    files = ("modeling_hf_nomic_bert.py", "configuration_hf_nomic_bert.py")
    assert why(tmp_path, "nomic_bert", *files, auto_map=ARCTIC_LONG, **NOMIC_SETTINGS) is None


def test_the_arctic_of_the_gte_architecture_is_known(tmp_path: Path) -> None:
    files = ("modeling_hf_alibaba_nlp_gte.py", "configuration_hf_alibaba_nlp_gte.py")
    settings: dict[str, Any] = {
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "position_embedding_type": "rope",
        "rope_scaling": None,
    }
    assert why(tmp_path, "gte", *files, auto_map=ARCTIC, **settings) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation_function", "geglu"),
        ("causal", True),
        ("num_experts", 8),
        ("parallel_block", True),
        ("prenorm", True),
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512),
        ("use_rms_norm", True),
    ],
)
def test_what_only_the_known_code_can_do_makes_another_model(
    tmp_path: Path, key: str, value: Any
) -> None:
    """With or without `auto_map`, which people take out to get round trust_remote_code."""
    expected = f"config.json says {key} = {value!r}, which transformers' class would leave out"
    settings: dict[str, Any] = NOMIC_SETTINGS | {key: value}
    assert why(tmp_path, "nomic_bert", auto_map=NOMIC, **settings) == expected
    assert why(tmp_path, "nomic_bert", **settings) == expected


@pytest.mark.parametrize("model_type", ["bert", "xlm-roberta", "qwen2"])
@pytest.mark.parametrize("positions", ["alibi", "relative_key_query", "rotary"])
def test_positions_that_transformers_dropped_make_another_model(
    tmp_path: Path, model_type: str, positions: str
) -> None:
    found = why(tmp_path, model_type, position_embedding_type=positions)
    assert found is not None
    assert found.startswith(f"config.json says position_embedding_type = '{positions}', which")
    assert why(tmp_path, model_type, position_embedding_type="absolute") is None


def test_stretched_positions_are_known_up_to_the_length_of_the_training(tmp_path: Path) -> None:
    stretched = NOMIC_SETTINGS | {"rotary_scaling_factor": 2}
    assert why(tmp_path, "nomic_bert", longest=2048, **stretched) is None
    assert why(tmp_path, "nomic_bert", longest=8192, **NOMIC_SETTINGS) is None
    found = why(tmp_path, "nomic_bert", longest=2049, **stretched)
    assert found is not None
    assert found.startswith(
        "config.json says rotary_scaling_factor = 2 for texts of more than 2048"
    )
    assert found.endswith("would leave out (--max-input-tokens 2048 has them cut)")
    own = stretched | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}
    assert why(tmp_path, "nomic_bert", longest=8192, **own) is None


def test_settings_under_names_that_the_class_does_not_read_are_told() -> None:
    config = {"model_type": "nomic_bert", "n_head": 12, "rotary_emb_base": 1000, "n_inner": None}
    assert list(renamed_settings(config)) == [
        ("n_head", "num_attention_heads", 12),
        ("rotary_emb_base", "rope_parameters.rope_theta", 1000),
    ]
    assert not list(renamed_settings(config | {"model_type": "gpt2"}))


@pytest.mark.parametrize("auto_map", [[1], {"AutoModel": 5}, {"AutoModel": {"a": "b"}}, 7])
def test_an_auto_map_that_names_no_classes_is_refused(tmp_path: Path, auto_map: Any) -> None:
    with pytest.raises(ImportRefused, match=r"config\.json: auto_map must name classes"):
        why(tmp_path, "bert", auto_map=auto_map)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]},
        ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2Tokenizer"],
    ],
)
def test_a_tokenizer_of_own_code_is_refused(tmp_path: Path, auto_map: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    with pytest.raises(ImportRefused) as refused:
        check_tokenizer_code(tmp_path / "tokenizer_config.json")
    assert refused.value.message == (
        f"{tmp_path}: its tokenizer's own code (tokenization_qwen.Qwen2Tokenizer) would have to be "
        "run, which is never done; where it may be trusted, save what it does as a tokenizer of "
        "transformers, and take the code and auto_map of tokenizer_config.json away"
    )


def test_a_folder_is_read_only_if_its_tokenizer_is_of_no_own_code(tmp_path: Path) -> None:
    config = {"model_type": "bert", "max_position_embeddings": 512, "auto_map": {"AutoModel": JINA}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").touch()
    not_stock = read_folder(tmp_path, pooling="mean", normalize=True).not_stock
    assert not_stock is not None
    assert JINA in not_stock
    (tmp_path / "tokenization_bert.py").touch()
    with pytest.raises(ImportRefused, match=r"own code \(tokenization_bert\.py\)"):
        read_folder(tmp_path, pooling="mean", normalize=True)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("roberta", "BertModel"),  # the tensors are the same, the positions are not
        ("bert", "XLMRobertaModel"),
        ("bert", "JinaBertForMaskedLM"),
        ("roberta", "RobertaPreLayerNormModel"),
        ("qwen2", "Qwen2BiModel"),
        ("qwen3", "Qwen3MoeModel"),
        ("llama", "LlamaBidirectionalModel"),
        ("xlm", "XLMRobertaModel"),
    ],
)
def test_a_class_of_another_architecture_is_another_model(
    tmp_path: Path, model_type: str, named: str
) -> None:
    said = why(tmp_path, model_type, architectures=[named])
    assert said is not None
    assert f"model_type {model_type}, but its architectures name {named}" in said


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("bert", "BertLMHeadModel"),
        ("bert", "BertForCL"),
        ("bert", "Contriever"),
        ("xlm-roberta", "XLMRobertaForMaskedLM"),
        ("deberta-v2", "DebertaV2Model"),
        ("mpnet", "MPNetForMaskedLM"),
        ("nomic_bert", "NomicBertModel"),
        ("gemma3_text", "Gemma3TextModel"),
        ("gemma3_text", "Gemma3ForCausalLM"),
        ("t5", "T5WithLMHeadModel"),
        ("mt5", "MT5EncoderModel"),
        ("dpr", "DPRQuestionEncoder"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
        ("gpt-sw3", "GPT2LMHeadModel"),
    ],
)
def test_the_names_of_an_architectures_own_classes_are_known(
    tmp_path: Path, model_type: str, named: str
) -> None:
    assert why(tmp_path, model_type, architectures=[named]) is None
