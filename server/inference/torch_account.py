"""What transformers' class for a config wants of its files, and the account of what they hold.

The class is made without memory (torch's meta device) and takes tensors that have a shape and no
content, by the library's own loading: renamed, split and merged as with real ones. The report of
`from_pretrained` would not do: it leaves out names that the class was told to ignore, and does not
say which stored tensor went where.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import meta_device_safe_creation_ops
from transformers.modeling_utils import LoadStateDictConfig

from server.inference.tensor_account import (
    ABSENT_HARMLESS,
    UNUSED_HARMLESS,
    TensorAccount,
    is_harmless,
)


class WantedTensors:
    """The tensors that a class wants for a config. Not thread-safe."""

    def __init__(self, model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
        with torch.device("meta"), meta_device_safe_creation_ops():  # as `from_pretrained` does
            self._model = model_class._from_config(  # noqa: SLF001 - no public way names the class
                copy.deepcopy(config), attn_implementation="eager", dtype=torch.float32
            )
        self._model_type = str(config.model_type)
        self._wanted = self._model.state_dict()
        self._pairs = tuple(self._model.all_tied_weights_keys.items())

    def account(self, stored: Mapping[str, Sequence[int]]) -> TensorAccount:
        """How far files that hold tensors of these names and shapes are what the class wants."""
        content = {name: torch.empty(tuple(shape), device="meta") for name, shape in stored.items()}
        mapping = get_model_conversion_mapping(self._model)
        loading = LoadStateDictConfig(
            device_map={"": "meta"}, dtype=torch.float32, weight_mapping=mapping
        )
        found, _ = convert_and_load_state_dict_in_model(self._model, content, loading)
        unusable = set(found.conversion_errors)  # such as three parts of 100 rows
        lacking = sorted(found.missing_keys - unusable - set(self._tied(found.missing_keys)))
        absent = [name for name in lacking if is_harmless(name, self._model_type, ABSENT_HARMLESS)]
        misshapen = sorted(
            f"{name} {list(there)} instead of {list(wanted)}"
            for name, there, wanted in found.mismatched_keys
        )
        takers, unexpected = self._places(stored, mapping)
        return TensorAccount(
            self._model_type,
            missing=tuple(name for name in lacking if name not in absent),
            unexpected=tuple(unexpected),
            misshapen=(*misshapen, *sorted(unusable)),
            doubled=tuple(" and ".join(names) for names in takers.values() if len(names) > 1),
            absent=tuple(absent),
            tied=self._pairs,
        )

    def _tied(self, missing: set[str]) -> Iterator[str]:
        """Those of the missing that are one with another tensor that is there."""
        for target, source in self._model.all_tied_weights_keys.items():
            if target in missing and source not in missing:
                yield target
            elif source in missing and target not in missing:
                yield source

    def _places(
        self, stored: Iterable[str], mapping: Sequence[WeightTransform]
    ) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
        """Which stored tensors want which place in the class, and those that have none."""
        renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
        converters = [one for one in mapping if isinstance(one, WeightConverter)]
        prefix = self._model.base_model_prefix
        takers: dict[tuple[str, str], list[str]] = defaultdict(list)
        unexpected = []
        for name in sorted(stored):
            place, pattern = rename_source_key(name, renamings, converters, prefix, self._wanted)
            if place not in self._wanted and name in self._wanted:  # as the library does
                place, pattern = name, None
            if place in self._wanted:
                takers[place, pattern or ""].append(name)
            elif not is_harmless(name, self._model_type, UNUSED_HARMLESS, prefix):
                unexpected.append(name)
        return takers, unexpected
