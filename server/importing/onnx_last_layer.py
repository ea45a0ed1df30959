"""The last layer computed only for the token that is pooled, in an exported ONNX graph.

With `cls` and `last_token` pooling one token of the last layer's output is kept. Its keys and values
are wanted of all tokens; its queries, output product and feed-forward only of that one. What picks
the token is therefore moved up the graph, through operators that treat each token for itself, until
it meets what is wanted of all tokens anyway. An operator that is not known here stays as it is, and
the token is picked behind it, so that every architecture is right and the known ones are fast.
Needs the `[torch]` extra, for its ONNX tools; knows nothing of torch or of cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

_BY_ELEMENT = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Clip"})
_BY_ELEMENT |= {"Cast", "Erf", "Exp", "Gelu", "Identity", "Neg", "Reciprocal", "Relu", "Sigmoid"}
_BY_ELEMENT |= {"Softplus", "Sqrt", "Tanh"}
_QUERY, _BIAS, _SCORES = 0, 3, 5  # inputs of com.microsoft.MultiHeadAttention


def compute_pooled_token_only(graph: ir.Graph) -> bool:
    """Move the pick of the pooled token up; the result is the same but for rounding.

    Inner values must have the shapes that the exporter writes, and no node may be without a use. It
    leaves some without.

    Returns:
        Whether there was such a pick, and something to save.
    """
    masks = [value for value in graph.inputs if value.name == "attention_mask"]
    axes = tuple(masks[0].shape or ()) if masks else ()  # (batch, tokens)
    pick = next(filter(None, (_find_pick(node, axes) for node in reversed(graph))), None)
    narrowed = _find_narrowed(graph, pick) if pick else []
    if pick is None or not narrowed:
        return False
    for node in reversed(narrowed):
        for place in pick.places(node):
            value = node.inputs[place]
            if value is not None and value.producer() not in narrowed:
                node.replace_input_with(place, pick.apply(graph, value))
    for node in narrowed:
        for value in node.outputs:
            value.shape = ir.Shape([axes[0], 1, *list(value.shape or ())[2:]])
    pick.leave_out(graph)
    graph.sort()
    return True


def _find_pick(node: ir.Node, axes: tuple[int | ir.SymbolicDim, ...]) -> _Pick | None:
    """The pick that `torch_pooling` has been exported to, if the node is one."""
    if node.op_type not in ("Gather", "GatherElements") or _number(node, "axis", 0) != 1:
        return None
    hidden, index = _input(node, 0), _input(node, 1)
    if hidden is None or not _is_of_tokens(hidden, axes):
        return None
    if node.op_type == "Gather" and _constant(index) == 0:
        return _Pick(node, axes, None)
    expand = index.producer() if index is not None else None
    if node.op_type == "GatherElements" and expand is not None and expand.op_type == "Expand":
        index = _input(expand, 0)
        if index is not None and tuple(index.shape or ()) == (axes[0], 1, 1):
            return _Pick(node, axes, index)
    return None


def _find_narrowed(graph: ir.Graph, pick: _Pick) -> list[ir.Node]:
    """The nodes whose result is wanted of the picked token alone, the last first."""
    narrowed: list[ir.Node] = []
    outputs = set(graph.outputs)
    for node in reversed(graph):
        uses = [use for value in node.outputs for use in value.uses()]
        wanted_of_all = any(
            use.node is not pick.node
            and (use.node not in narrowed or use.idx not in pick.places(use.node))
            for use in uses
        )
        if uses and not wanted_of_all and outputs.isdisjoint(node.outputs) and pick.places(node):
            narrowed.append(node)
    return narrowed


@dataclass(slots=True)
class _Pick:
    """Which token of a text is pooled, and by which node."""

    node: ir.Node
    axes: tuple[int | ir.SymbolicDim, ...]  # (batch, tokens)
    index: ir.Value | None  # (batch, 1, 1), int64; None: the first token
    picked: dict[ir.Value, ir.Value] = field(default_factory=dict)

    def places(self, node: ir.Node) -> tuple[int, ...]:
        """The inputs of which one token suffices if one token of the result does; none if unknown."""
        of_tokens = tuple(
            place
            for place, value in enumerate(node.inputs)
            if value is not None and _is_of_tokens(value, self.axes)
        )
        if not all(_is_of_tokens(value, self.axes) for value in node.outputs):
            return ()
        if node.op_type == "MultiHeadAttention":
            return self._places_of_attention(node, of_tokens)
        others = [
            value
            for place, value in enumerate(node.inputs)
            if value is not None and place not in of_tokens
        ]
        if not all(_is_fixed(value) for value in others) or not _treats_each_token(node):
            return ()
        return of_tokens

    def _places_of_attention(self, node: ir.Node, of_tokens: Sequence[int]) -> tuple[int, ...]:
        scores, bias = _input(node, _SCORES), _input(node, _BIAS)
        if _QUERY not in of_tokens or len(node.inputs) > _SCORES + 1 or bias is not None:
            return ()
        if _number(node, "unidirectional", 0):  # a query would be taken for the first one
            return ()
        if scores is None:
            return (_QUERY,)
        batch, tokens = self.axes
        each = tuple(scores.shape or ()) == (batch, 1, tokens, tokens)
        return (_QUERY, _SCORES) if each else ()

    def apply(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        """The picked token of a value, (batch, 1, size), or of scores, (batch, 1, 1, tokens)."""
        if value not in self.picked:
            self.picked[value] = self._add_nodes(graph, value)
        return self.picked[value]

    def _add_nodes(self, graph: ir.Graph, value: ir.Value) -> ir.Value:
        scores = len(value.shape or ()) == 4
        name = f"{value.name}.pooled"
        if self.index is None:
            first = _add_constant(graph, "pooled_token", np.array([0]))
            return _add(graph, "Gather", [value, first], name, axis=2 if scores else 1)
        if not scores:
            return _add(graph, "GatherND", [value, self.index], name, batch_dims=1)
        one = _add_constant(graph, "head_axis", np.array([1]))
        merged = _add(graph, "Squeeze", [value, one], f"{name}.merged")
        chosen = _add(graph, "GatherND", [merged, self.index], f"{name}.chosen", batch_dims=1)
        return _add(graph, "Unsqueeze", [chosen, one], name)

    def leave_out(self, graph: ir.Graph) -> None:
        """What was narrowed has one token, which is the picked one."""
        hidden = _input(self.node, 0)
        if self.index is not None and hidden is not None:
            ir.convenience.replace_all_uses_with(self.node.outputs[0], hidden)
            graph.remove(self.node, safe=True)


def _treats_each_token(node: ir.Node) -> bool:
    """Whether a token's result depends on that token alone, for values (batch, tokens, size)."""
    if node.op_type in _BY_ELEMENT:
        return True
    if node.op_type in ("MatMul", "FusedMatMul"):
        weight = _input(node, 1)
        turned = _number(node, "transA", 0) or _number(node, "transBatchA", 0)
        return weight is not None and len(weight.shape or ()) == 2 and not turned
    if node.op_type == "LayerNormalization":
        return _number(node, "axis", -1) in (-1, 2)
    if node.op_type == "ReduceMean":
        return _constant(_input(node, 1)) in (-1, 2) and _number(node, "keepdims", 1) == 1
    return node.op_type == "Split" and _number(node, "axis", 0) in (-1, 2)


def _is_of_tokens(value: ir.Value, axes: tuple[int | ir.SymbolicDim, ...]) -> bool:
    """Whether it is (batch, tokens, size)."""
    shape = tuple(value.shape or ())
    return len(shape) == 3 and shape[:2] == axes and isinstance(shape[2], int)


def _is_fixed(value: ir.Value) -> bool:
    """Whether its shape depends neither on the texts nor on their lengths."""
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def _input(node: ir.Node, place: int) -> ir.Value | None:
    """None if it is left out, as optional ones may be, in the middle or at the end."""
    return node.inputs[place] if place < len(node.inputs) else None


def _number(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _constant(value: ir.Value | None) -> int | None:
    """The one number that an initialiser holds; None if it is something else."""
    tensor = value.const_value if value is not None else None
    return int(tensor.numpy().item()) if tensor is not None and tensor.size == 1 else None


def _add(
    graph: ir.Graph, operator: str, inputs: Sequence[ir.Value], name: str, **attributes: int
) -> ir.Value:
    given = [ir.AttrInt64(key, number) for key, number in attributes.items()]
    node = ir.Node("", operator, inputs, attributes=given)
    (value,) = node.outputs
    value.name = name
    graph.append(node)
    return value


def _add_constant(graph: ir.Graph, name: str, numbers: NDArray[np.int64]) -> ir.Value:
    if name not in graph.initializers:
        tensor = ir.tensor(numbers, name=name)
        value = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
