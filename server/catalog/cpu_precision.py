"""What was measured of a model in lower precision on a CPU, as its card says. Pure data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

CpuDtype = Literal["bfloat16", "int8"]
Cosine = Annotated[float, Field(ge=-1, le=1)]


class CpuPrecision(BaseModel):
    """How near the vectors computed in one dtype on a CPU are to those in float32."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: CpuDtype
    measured_on: str  # which texts
    texts: int = Field(ge=1, le=2**31)
    mean_cosine: Cosine
    min_cosine: Cosine
    # Share (0 to 1) of each text's ten nearest neighbours among these texts, a mean.
    neighbours_kept: float = Field(ge=0, le=1)
    # Spearman's correlation, times 100, where the texts are pairs that people scored.
    stsb_dev_spearman: float | None = None
    stsb_dev_spearman_float32: float | None = None
