"""What the families with rotary positions share: their settings, which token sees which, attention.

Two spellings of the same settings are read: `rope_parameters` (transformers 5) and `rope_theta` with
`rope_scaling` beside it (before). What they say of other kinds of scaling is refused by name. Pure
functions; any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.errors import UnknownArithmetic
from server.importing.witness import formulas, settings
from server.importing.witness.formulas import Floats

Norm = Callable[[Floats], Floats]

FULL, SLIDING = "full_attention", "sliding_attention"
_MOST_LAYERS = 10_000  # a broken number must not fill the memory

# Of a rotation's settings: beside the base and the factor, these decide nothing of the kinds known.
_KINDS = ("default", "linear")
_NEUTRAL = {"original_max_position_embeddings": None, "partial_rotary_factor": 1}


@dataclass(frozen=True, slots=True)
class Rotation:
    """How queries and keys turn with their position; see `formulas.rotate`."""

    base: float
    factor: float = 1.0


def read_rotation(
    config: Mapping[str, Any], base_key: str, *, layer_type: str | None = None, scaled: bool = True
) -> Rotation:
    """The rotation of all layers, or of those of one type.

    Args:
        base_key: the base's older name, beside `rope_scaling`.
        layer_type: the key within `rope_parameters`; None: it is not told by layer types.
        scaled: whether the older `rope_scaling` is meant for these layers, too.

    Raises:
        UnknownArithmetic: no base is told, two spellings differ, or the kind is not known here.
    """
    told = _object(config, "rope_parameters")
    where = "rope_parameters"
    if told and layer_type is not None:
        told, where = _object(told, layer_type), f"rope_parameters.{layer_type}"
        if not told:
            raise UnknownArithmetic(f"config.json: rope_parameters says nothing of {layer_type}")
    found = dict(told)
    older = dict(_object(config, "rope_scaling")) if scaled else {}
    if base_key in config:
        older["rope_theta"] = config[base_key]
    for key, value in older.items():
        if found.setdefault(key, value) != value:
            raise UnknownArithmetic(
                f"config.json: {key} is {value!r}, but {found[key]!r} in {where}"
            )
    return _rotation(found, f"{where}.rope_theta" if told and base_key not in config else base_key)


def _rotation(found: dict[str, Any], base_name: str) -> Rotation:
    kind = found.pop("rope_type", found.get("type", "default"))
    if kind not in _KINDS or found.pop("type", kind) != kind:
        raise UnknownArithmetic(
            f"config.json: rope_type is {kind!r}; the witness knows only {' and '.join(_KINDS)}"
        )
    base = settings.number({base_name: found.pop("rope_theta", None)}, base_name)
    factor = settings.number({"factor": found.pop("factor", 1)}, "factor")
    if kind == "default" and factor != 1:
        raise UnknownArithmetic(f"config.json: a rotation by default has the factor {factor}")
    for key, value in found.items():
        if key not in _NEUTRAL or _NEUTRAL[key] not in (None, value):
            raise UnknownArithmetic(
                f"config.json: the witness knows no rotation with {key} {value!r}"
            )
    return Rotation(base, factor)


def _object(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    if found is not None and not isinstance(found, Mapping):
        raise UnknownArithmetic(f"config.json: {key} is {found!r}, not an object")
    return found or {}


def read_layer_types(config: Mapping[str, Any], older: Callable[[int], str]) -> Sequence[str]:
    """The type of each layer: FULL or SLIDING.

    Args:
        older: the type by a layer's number, for configs without `layer_types`.

    Raises:
        UnknownArithmetic: there are more or fewer types than layers, or others.
    """
    layers = settings.count(config, "num_hidden_layers")
    if layers > _MOST_LAYERS:
        raise UnknownArithmetic(f"config.json: num_hidden_layers is {layers}")
    types = config.get("layer_types")
    if types is None:
        types = [older(number) for number in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise UnknownArithmetic(f"config.json: layer_types does not name {layers} layers")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise UnknownArithmetic(f"config.json: the witness knows no layer type {kind!r}")
    return types


def sees(tokens: int, *, causal: bool, reach: int | None) -> NDArray[np.bool_] | None:
    """Whether a token (row) looks at another one (column), (tokens, tokens); None: at every one.

    Args:
        causal: it looks at itself and at earlier ones only.
        reach: the farthest distance at which one is still seen; None: any.
    """
    if not causal and reach is None:
        return None
    places = np.arange(tokens)
    back = places[:, None] - places[None, :]  # how far the column lies behind the row
    near = back >= 0 if causal else np.ones((tokens, tokens), dtype=np.bool_)
    return near if reach is None else near & (np.abs(back) <= reach)


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention between its projections.

    Raises:
        UnknownArithmetic: `head_dim` is odd: its numbers cannot be paired.
    """

    heads: int
    key_heads: int
    head_dim: int
    rotation: Rotation
    causal: bool = False
    reach: int | None = None  # see `sees`
    scale: float | None = None  # see `formulas.attention`

    def __post_init__(self) -> None:
        if self.head_dim % 2:
            raise UnknownArithmetic(
                f"config.json: heads of {self.head_dim} numbers cannot be rotated"
            )

    def __call__(
        self,
        queries: Floats,
        keys: Floats,
        values: Floats,
        query_norm: Norm | None = None,
        key_norm: Norm | None = None,
    ) -> Floats:
        """(tokens, heads * head_dim); the norms go over each head, before it is rotated."""
        return formulas.attention(
            self._placed(queries, self.heads, query_norm),
            self._placed(keys, self.key_heads, key_norm),
            values,
            heads=self.heads,
            key_heads=self.key_heads,
            scale=self.scale,
            allowed=sees(len(queries), causal=self.causal, reach=self.reach),
        )

    def _placed(self, inputs: Floats, heads: int, norm: Norm | None) -> Floats:
        split = formulas.split_heads(inputs, heads)
        if norm is not None:
            split = norm(split)
        return formulas.join_heads(formulas.rotate(split, self.rotation.base, self.rotation.factor))
