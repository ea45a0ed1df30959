"""Layers are compiled while a model is loaded, and never while it serves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from server.inference.compilations import COMPILATIONS
from server.inference.recorded_shapes import packings_to_warm
from server.inference.torch_compile import (
    MOST_COMPILED,
    are_compiled,
    compile_layers,
    release_layers,
    warm_up,
)
from server.inference.torch_modules import DenseLayers, PackedModule, lay_out

LONGEST = 600  # tokens of a text; no shape of more than 512 is recorded
BUDGET = 700
# Dynamo decides what a compiled layer holds for, whatever compiles it; this is the quickest.
BACKEND = "eager"


@pytest.fixture
def packed() -> Iterator[PackedModule]:
    config = Qwen3Config(
        vocab_size=200, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=LONGEST,
    )  # fmt: skip
    transformer = Qwen3Model._from_config(config, attn_implementation="eager").eval()
    made = PackedModule(transformer, DenseLayers([], normalize=True), "last_token")
    made.attend()
    made.narrow()  # its last layer is a function of its own to torch
    compile_layers(transformer, BACKEND)
    yield made
    release_layers(transformer)
    torch._dynamo.reset()


def embed(packed: PackedModule, lengths: Sequence[int]) -> None:
    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 200, length, dtype=np.int32) for length in lengths]
    with torch.inference_mode():
        packed(*lay_out([torch.from_numpy(text) for text in texts]))


def lines_of_ours(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without those of torch, which tells each step of a compilation."""
    return [one.getMessage() for one in caplog.records if one.name.startswith("server.")]


@pytest.fixture
def told() -> Iterator[list[int]]:
    found: list[int] = []
    before, COMPILATIONS.tell = COMPILATIONS.tell, lambda: found.append(1)
    yield found
    COMPILATIONS.tell = before


@pytest.mark.filterwarnings("ignore")  # torch's own, while it compiles
def test_after_warming_up_nothing_is_compiled_whatever_is_computed(
    packed: PackedModule, told: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with COMPILATIONS.expected():
        assert warm_up(lambda lengths: embed(packed, lengths), packings_to_warm(BUDGET, LONGEST))
    warm = COMPILATIONS.count
    chance = np.random.default_rng(3)
    with ThreadPoolExecutor(1) as worker:  # as while serving: torch has settings of each thread
        for _ in range(30):
            most = chance.choice([3, 30, LONGEST + 1])
            lengths = chance.integers(1, most, chance.integers(1, 12))
            worker.submit(embed, packed, lengths.tolist()).result()
        for single in ([1], [2], [LONGEST], [3, 2]):  # which chance seldom finds
            worker.submit(embed, packed, single).result()
    assert COMPILATIONS.count == warm
    assert told == []
    assert not lines_of_ours(caplog)


@pytest.mark.filterwarnings("ignore")
def test_what_is_compiled_while_serving_is_told(
    packed: PackedModule, told: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with COMPILATIONS.expected():
        embed(packed, [600, 3, 1, 2])
    assert told == []
    embed(packed, [1])  # a number that is 1 is compiled anew: tokens, and texts in the last layer
    assert told == [1, 1]
    assert set(lines_of_ours(caplog)) == {
        "torch compiles while requests wait: loading has not met such a shape"
    }


class Layer(torch.nn.Module):  # type: ignore[misc]
    """Of a model of this size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size), requires_grad=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.weight


@pytest.mark.filterwarnings("ignore")
def test_many_unlike_models_in_one_process_are_all_compiled() -> None:
    for size in range(2, 22):
        layer = Layer(size)
        compile_layers(torch.nn.Sequential(torch.nn.ModuleList([layer])), BACKEND)
        before = COMPILATIONS.count
        with COMPILATIONS.expected(), torch.inference_mode():
            layer(torch.zeros(3, size))
        assert COMPILATIONS.count > before, size
    torch._dynamo.reset()


def test_warming_up_that_has_no_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Sequence[int]] = []

    def compiling(lengths: Sequence[int]) -> None:
        computed.append(lengths)
        with COMPILATIONS.expected():
            COMPILATIONS.note()

    assert not warm_up(compiling, [[5], [7]])
    assert len(computed) == MOST_COMPILED + 1
    assert warm_up(computed.append, [[5], [7]])


def test_layers_tell_whether_they_are_compiled(packed: PackedModule) -> None:
    assert are_compiled(packed.transformer)
    release_layers(packed.transformer)
    assert not are_compiled(packed.transformer)
