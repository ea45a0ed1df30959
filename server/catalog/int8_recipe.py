"""How a model's weights become int8, as its card says. Pure; any thread may call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

GroupSize = Literal[32, 64, 128]

# How `openvino_int8` makes a row of weights. It stands for the arithmetic in the fingerprint: another
# way to quantise is another text here.
_WEIGHTS = "uint8, scale and zero point a row"


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A weight matrix that a graph multiplies by."""

    name: str
    product: str  # the name of the node that multiplies
    inputs: int
    outputs: int

    @property
    def size(self) -> int:
        """Its numbers, which are also the multiplications that a token takes."""
        return self.inputs * self.outputs


class Int8Recipe(BaseModel):
    """How a model is computed in int8 on a CPU, from its weights as they were published.

    Each row of a weight matrix, an output of it, has a scale and a zero point of its own; each group
    of `group_size` inputs of a token has a scale, when it is computed. What is not int8 is bfloat16,
    or float32 on a processor that does not compute in bfloat16.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Not so: when the card was made no recipe gave vectors that were near enough.
    offered: bool = True
    group_size: GroupSize = 64
    # Patterns as in shells, of the names of weights or of their products, that do not become int8.
    keep: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    # Least cosine to the vectors in float32 that a machine may give; below it none is served.
    min_cosine: float = Field(0.99, gt=0, le=1)

    @property
    def facts(self) -> dict[str, object]:
        """What of it decides a vector."""
        return {
            "weights": _WEIGHTS,
            "group_size": self.group_size,
            "keep": sorted(set(self.keep)),
        }

    @property
    def words(self) -> str:
        """As people read it."""
        kept = f", bfloat16 for {', '.join(self.keep)}" if self.keep else ""
        return f"groups of {self.group_size}{kept}"

    def makes_int8(self, matrix: StoredMatrix) -> bool:
        """Whether it becomes int8: it is not kept, and its inputs are whole groups."""
        kept = any(_matches(pattern, matrix) for pattern in self.keep)
        return not kept and matrix.inputs % self.group_size == 0

    def find_missing(self, matrices: Iterable[StoredMatrix]) -> tuple[str, ...]:
        """The patterns of `keep` that are for none of a graph's matrices."""
        there = list(matrices)
        return tuple(
            pattern for pattern in self.keep if not any(_matches(pattern, one) for one in there)
        )


def _matches(pattern: str, matrix: StoredMatrix) -> bool:
    return any(fnmatchcase(name, pattern) for name in (matrix.name, matrix.product))
