"""The form in which a model's vectors leave it: their size, their length, how they are written.

The one place that decides it, for answers over HTTP, for files and for what is measured of sizes.
Knows nothing of requests or files. Pure; any thread may call.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from server.catalog.card import Card
from server.errors import InvalidRequest
from server.inference.matryoshka import shorten

JsonEncoding = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class VectorForm:
    """What is done to the vectors that an encoder gives, before anybody sees them."""

    dimensions: int
    layer_norm: bool = False  # centre a vector before it is shortened; see `shorten`

    @classmethod
    def of(cls, card: Card, dimensions: int | None = None) -> VectorForm:
        """The form of a model's vectors.

        Args:
            dimensions: the size asked for; None: the model's native size.

        Raises:
            InvalidRequest: the model cannot be cut, or the size is not within 1 to its native size.
        """
        native = card.embedding_dim
        # Many clients always name the size.
        if dimensions is None or dimensions == native:
            dimensions = native
        elif card.matryoshka is None:
            raise InvalidRequest(
                "This model does not support specifying dimensions.", param="dimensions"
            )
        elif not 1 <= dimensions <= native:
            raise InvalidRequest(
                f"Invalid value for 'dimensions': {dimensions} is not between 1 and {native}, the "
                f"native size of {card.name}.",
                param="dimensions",
            )
        return cls(dimensions, card.matryoshka is not None and card.matryoshka.layer_norm)

    def shape(
        self, vectors: NDArray[np.float32], rotation: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        """An encoder's vectors in this form.

        Args:
            vectors: (texts, embedding_dim), float32.
            rotation: the model's, (embedding_dim, embedding_dim), float32; None if it has none.

        Returns:
            (texts, dimensions), float32, C-contiguous. The vectors themselves if nothing changes.
        """
        return shorten(vectors, self.dimensions, rotation, layer_norm=self.layer_norm)


def json_values(
    vectors: NDArray[np.float32], encoding: JsonEncoding = "float"
) -> Sequence[NDArray[np.float32] | str]:
    """What stands for each vector in JSON, to be written by orjson with OPT_SERIALIZE_NUMPY.

    Args:
        vectors: (texts, dimensions), float32, C-contiguous.
        encoding: `float`: a list of the shortest decimals that read back as the same float32;
            `base64`: a string, the padded base64 of the vector's little-endian float32 bytes.
    """
    if encoding == "float":
        return list(vectors)
    return [binascii.b2a_base64(row, newline=False).decode("ascii") for row in stored(vectors)]


def stored(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors with the bytes that leave this machine: little-endian, in C order.

    Copied only where the machine's own order is another one.
    """
    return np.ascontiguousarray(vectors, dtype="<f4")
