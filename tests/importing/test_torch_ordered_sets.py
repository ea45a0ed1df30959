"""Sets in transformers' code come in one order while a graph is made."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Gemma3TextModel
from transformers.models.gemma3 import modeling_gemma3

from server.importing.torch_ordered_sets import ordered_sets
from tests.importing.folders import make_folder

WORDS = [f"layer type {number}" for number in range(40)]
CODE = """
import torch
class Model(torch.nn.Module):
    def forward(self, words):
        return [word for word in set(words)]
"""


def test_a_set_is_gone_through_in_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty words come out in the wanted order by chance once in 40! runs."""
    module = types.ModuleType("transformers.models.made_up")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(CODE, vars(module))
    model = module.Model()
    with ordered_sets(model):
        assert model(reversed(WORDS)) == sorted(WORDS)
    assert "set" not in vars(module)


def test_gemmas_layer_types_come_in_one_order(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "gemma", "gemma3_text")
    model = Gemma3TextModel(AutoConfig.from_pretrained(folder))
    asked: list[str] = []
    real = model.rotary_emb.forward

    def listen(hidden: torch.Tensor, positions: torch.Tensor, layer_type: str) -> object:
        asked.append(layer_type)
        return real(hidden, positions, layer_type)

    model.rotary_emb.forward = listen
    with ordered_sets(model):
        model(torch.tensor([[2, 5, 6]]))
        assert modeling_gemma3.set is not set
    assert asked == ["full_attention", "sliding_attention"]
