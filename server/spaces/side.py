"""One of the sides that are compared: what gives vectors for texts.

Declares; computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from server.offline.embed_windows import ShowProgress
from server.spaces.text_lines import TextLine


@dataclass(frozen=True, slots=True)
class SideFacts:
    """What is known of a side once it has given vectors."""

    given: str  # as the person wrote it, without secrets
    model: str  # the name that it calls itself
    dimensions: int
    computed: str  # where, and in which numbers as far as that is known
    fingerprint: str | None  # None: a server that tells none


@dataclass(frozen=True, slots=True)
class Asked:
    """How all sides are asked."""

    input_type: str | None = None  # None: the model's default prompt, if it has one
    truncate: bool = False  # cut over-long texts, do not refuse them


class Side(Protocol):
    """A model of this disk, or one that a server has."""

    given: str

    def embed(
        self, lines: Sequence[TextLine], show: ShowProgress
    ) -> tuple[NDArray[np.float32], SideFacts]:
        """Vectors (texts, dimensions), float32, in the order given; blocks until all are there.

        Raises:
            TextFileError: a text cannot be embedded; names its line.
            RemoteServerError: the server cannot be asked, or answers what it should not.
            ModelFileError, ModelLoadError: the model cannot be used.
        """
        ...
