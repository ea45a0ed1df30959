"""Settings of other models, or of models to come, that would change the arithmetic.

A family's formulas read the settings that they know. Those here are known of its relatives: where a
config says one of them, and not that it changes nothing, the witness would compute another model.
Pure functions; any thread may call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.errors import UnknownArithmetic

# Each with the values that change nothing. None, like no such key, changes nothing either.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    # another attention
    "attn_logit_softcapping": (),  # Gemma 2
    "attention_chunk_size": (),  # Llama 4
    "attention_k_eq_v": (False,),  # Gemma 4
    "attention_multiplier": (1,),  # Granite
    "attn_temperature_tuning": (False,),  # Llama 4
    "clip_qkv": (),  # OLMo
    "global_head_dim": (),  # Gemma 4
    "kv_lora_rank": (0,),  # DeepSeek
    "num_kv_shared_layers": (0,),  # Gemma 3n
    "qk_layernorm": (False,),  # Phi, StableLM
    "use_qk_norm": (False,),  # Cohere, Llama 4
    "scale_attn_by_inverse_layer_idx": (False,),  # GPT-2
    # other positions
    "alibi": (False,),  # Falcon
    "no_rope_layers": ([],),  # Llama 4, SmolLM 3
    "partial_rotary_factor": (1,),  # Phi, GLM
    "rope_interleave": (False,),  # DeepSeek
    "rotary_pct": (1,),  # GPT-NeoX
    "use_mrope": (False,),  # Qwen2-VL
    # other layers
    "add_cross_attention": (False,),
    "embedding_multiplier": (1,),  # Granite
    "residual_multiplier": (1,),  # Granite
    "hidden_size_per_layer_input": (0,),  # Gemma 3n
    "is_decoder": (False,),
    "parallel_attn": (False,),  # Falcon
    "parallel_block": (False,),  # NomicBERT
    "pruned_heads": ({},),
    "scale_embedding": (False,),  # BART
    "use_parallel_residual": (False,),  # GPT-NeoX
    # mixtures of experts
    "enable_moe_block": (False,),  # Gemma 4
    "moe_every_n_layers": (0, -1),  # Nomic Embed v2
    "moe_intermediate_size": (0,),  # Qwen3 MoE
    "n_routed_experts": (0,),  # DeepSeek
    "num_experts": (0,),  # Qwen3 MoE, Nomic Embed v2
    "num_local_experts": (0,),  # Mixtral
    # other numbers in the files than those that count
    "quantization_config": (),
}


def refuse_strangers(config: Mapping[str, Any]) -> None:
    """See that none of these settings says anything.

    Raises:
        UnknownArithmetic: one does; it is named.
    """
    for key, neutral in _NEUTRAL.items():
        found = config.get(key)
        if found is not None and found not in neutral:
            raise UnknownArithmetic(
                f"config.json: {key} is {found!r}; the witness knows no such model"
            )
