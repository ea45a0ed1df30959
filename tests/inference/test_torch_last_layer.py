"""The last layer is computed for the pooled tokens alone, and the vectors stay what they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from server.catalog.card import PoolingMode
from server.inference.torch_last_layer import layers_of
from server.inference.torch_modules import DenseLayers, PackedModule, lay_out

LENGTHS = (1, 2, 5, 17, 40, 9)
SLOTS = len(LENGTHS) + 3  # three are not used
SIZES = {"vocab_size": 300, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 96, "max_position_embeddings": 64}
SPECIAL = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "Camembert": {},
    "Roberta": {},
    "XLMRoberta": {},
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "ModernBert": {"local_attention": 8, "global_attn_every_n_layers": 2, **SPECIAL},
}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **OPTIONS.get(name, {}))
    made: PreTrainedModel = getattr(transformers, f"{name}Model")(config).eval()
    return made


def packed_and_embed(
    name: str, pooling: PoolingMode
) -> tuple[PackedModule, Callable[[], torch.Tensor]]:
    """A model, and its vectors of random texts, as in a recorded shape: with unused slots and ids."""
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(5, 300, (length,), generator=draw) for length in LENGTHS]
    ids, bounds, longest = lay_out(texts)
    ids = torch.cat([ids, torch.zeros(11, dtype=ids.dtype)])
    bounds = torch.cat([bounds, bounds[-1:].expand(SLOTS - len(texts))])
    packed = PackedModule(make(name), DenseLayers([], normalize=True), pooling)
    packed.attend()

    def embed() -> torch.Tensor:
        with torch.inference_mode():
            vectors: torch.Tensor = packed(ids, bounds, longest)
        return vectors[: len(texts)]

    return packed, embed


@pytest.mark.parametrize("pooling", ["cls", "last_token"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_vectors_are_those_of_all_tokens(name: str, pooling: PoolingMode) -> None:
    packed, embed = packed_and_embed(name, pooling)
    expected = embed()
    before = str(packed)
    assert packed.narrow()
    seen: list[tuple[int, ...]] = []
    layers_of(packed.transformer)[-1].register_forward_hook(
        lambda module, args, found: seen.append(tuple(found.shape))
    )
    torch.testing.assert_close(embed(), expected, rtol=0, atol=1e-6)
    assert seen == [(1, SLOTS, 48)]
    packed.widen()
    torch.testing.assert_close(embed(), expected, rtol=0, atol=0)
    assert str(packed) == before


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("Llama", "post_attention_layernorm"),
        ("Llama", "mlp"),
        ("ModernBert", "attn_norm"),
        ("Bert", "intermediate"),
        ("Bert", "output"),
    ],
)
def test_a_layer_that_names_a_member_otherwise_stays_as_it_is(name: str, member: str) -> None:
    packed, _ = packed_and_embed(name, "cls")
    layer = layers_of(packed.transformer)[-1]
    setattr(layer, f"other_{member}", getattr(layer, member))
    delattr(layer, member)
    before = str(packed)
    assert not packed.narrow()
    assert str(packed) == before


@pytest.mark.parametrize(("name", "pooling"), [("Qwen3", "mean"), ("NomicBert", "cls")])
def test_a_mean_and_a_layer_that_is_not_known_want_all_tokens(
    name: str, pooling: PoolingMode
) -> None:
    packed, embed = packed_and_embed(name, pooling)
    expected = embed()
    assert not packed.narrow()
    torch.testing.assert_close(embed(), expected, rtol=0, atol=0)
