"""The account of a model's tensors: what its class wants against what its files hold.

A loader makes up what the files lack and throws away what the class does not take; both give other
vectors without a word. So each tensor has to have its place, but for those of two short lists. Pure;
any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHOWN = 5  # names of each kind that a refusal lists
# What peft's wrappers add to a base model's names.
_ADAPTER = re.compile(r"\.lora_|\.base_layer\.|^base_model\.model\.|\.modules_to_save\.")


class UnaccountedTensors(ValueError):
    """Files and architecture do not fit; the message is one line that lists the tensors."""


@dataclass(frozen=True, slots=True)
class Harmless:
    """Tensors that no embedding depends on, by their names without the base model's prefix."""

    names: str  # a regular expression for the whole name
    reason: str
    model_types: tuple[str, ...] = ()  # for these architectures only; for all if empty


# The files hold them and the class does not take them.
UNUSED_HARMLESS = (
    Harmless(
        r"pooler\..*",
        "works on the last hidden states, which are what is pooled here",
    ),
    Harmless(
        r"(.*\.)?position_ids",
        "a buffer that counts 0, 1, 2, ...; the class counts itself",
    ),
    Harmless(
        r"(.*\.)?rotary_emb\.inv_freq",
        "a buffer of frequencies, which the class computes from the config's rope_theta",
    ),
    Harmless(
        r"lm_head\..*|cls\.(predictions|seq_relationship)\..*",
        "the head that predicts tokens or the next sentence, behind the last hidden states",
    ),
    Harmless(
        r"vocab_(transform|layer_norm|projector)\..*",
        "the head that predicts tokens, behind the last hidden states",
        ("distilbert",),
    ),
    Harmless(
        r"(head\.(dense|norm)|decoder)\..*",
        "the head that predicts tokens, behind the last hidden states",
        ("modernbert",),
    ),
    Harmless(
        r"(predictions|sop_classifier)\..*",
        "the heads that predict tokens and the sentences' order, behind the last hidden states",
        ("albert",),
    ),
    Harmless(
        r"(discriminator|generator)_predictions\..*|generator_lm_head\..*",
        "the heads of the pre-training, behind the last hidden states",
        ("convbert", "electra"),
    ),
    Harmless(
        r"(lm|mask)_predictions\..*",
        "the heads of the pre-training, behind the last hidden states",
        ("deberta", "deberta-v2"),
    ),
    Harmless(
        r"h\.\d+\.attn\.(masked_)?bias",
        "a buffer with the causal mask, which the class makes itself",
        ("gpt2",),
    ),
    Harmless(
        r"decoder\..*",
        "the decoder, of which an encoder knows nothing",
        ("t5", "mt5", "umt5"),
    ),
)
# The class has them and the files lack them. They become NaN, so that one that is used after all
# cannot stay unseen. Tied weights are not here: they are there under their other name.
ABSENT_HARMLESS = (
    Harmless(
        r"pooler\..*",
        "works on the last hidden states, which are what is pooled here",
    ),
)


@dataclass(frozen=True, slots=True)
class TensorAccount:
    """How far files and architecture agree; the names are those of the files or of the class."""

    model_type: str
    missing: tuple[str, ...] = ()  # the class has it and the files lack it
    unexpected: tuple[str, ...] = ()  # the files hold it and the class does not take it
    misshapen: tuple[str, ...] = ()  # with both shapes
    doubled: tuple[str, ...] = ()  # two names in the files for one place
    absent: tuple[str, ...] = ()  # missing, and harmless
    tied: tuple[tuple[str, str], ...] = ()  # two names of one place in the class

    def check(self) -> None:
        """Do nothing if each tensor has its place.

        Raises:
            UnaccountedTensors: some have none.
        """
        kinds = (
            (self.missing, f"{self.model_type} wants {{}} that the files lack"),
            (self.misshapen, "the files hold {} of another shape than config.json says"),
            (self.unexpected, f"the files hold {{}} that {self.model_type} does not take"),
            (self.doubled, "the files hold {} under two names"),
        )
        found = [f"{what.format(_count(n))}: {listed(n)}" for n, what in kinds if n]
        if not found:
            return
        advice = "get the publisher's whole files, whose names are as transformers saves them"
        if any(_ADAPTER.search(name) for name in self.unexpected):
            advice = "merge the adapter into its base first (peft: merge_and_unload)"
        raise UnaccountedTensors(f"{'; '.join(found)}; {advice}")


def is_harmless(name: str, model_type: str, kinds: Iterable[Harmless], prefix: str = "") -> bool:
    """Whether a tensor is on a list.

    Args:
        prefix: of the base model in a class with a head (`bert`, `model`), which may be in front.
    """
    bare = name.removeprefix(f"{prefix}.") if prefix else name
    return any(
        re.fullmatch(one.names, bare) and (not one.model_types or model_type in one.model_types)
        for one in kinds
    )


def listed(names: Sequence[str], most: int = _SHOWN) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _count(names: Sequence[str]) -> str:
    return "1 tensor" if len(names) == 1 else f"{len(names)} tensors"
