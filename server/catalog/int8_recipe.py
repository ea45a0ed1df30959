"""How a model's weights become int8, as its card says. Pure; any thread may call."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Int8Recipe(BaseModel):
    """How a model is computed in int8 on a CPU, from its weights as they were published.

    Each row of a weight matrix, an output of it, has a scale of its own; so has each group of
    `group_size` inputs of a token, when it is computed. What is not int8 is bfloat16.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    group_size: Literal[32, 64, 128] = 64
    # Patterns as in shells, of the names of weights or of their products, that stay in bfloat16.
    keep: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    # Least cosine to the vectors in float32 that a machine may give; below it none is served.
    min_cosine: float = Field(0.99, gt=0, le=1)

    @property
    def facts(self) -> dict[str, object]:
        """What of it decides a vector."""
        return {"group_size": self.group_size, "keep": sorted(set(self.keep))}
