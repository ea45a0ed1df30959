"""The inputs of one request in either of their two forms, after validation.

Knows nothing of HTTP; immutable.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Inputs:
    is_list: bool  # whether the request held a list of inputs, or a single one

    def position(self, index: int) -> str:
        """How an error message names the input at `index`: `input[3]`, or `input` if single."""
        return f"input[{index}]" if self.is_list else "input"


@dataclass(frozen=True, slots=True)
class TextInputs(_Inputs):
    """Texts, none of them empty."""

    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class TokenIdInputs(_Inputs):
    """Lists of token ids, none of them empty, every id >= 0."""

    token_ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.token_ids)


Inputs = TextInputs | TokenIdInputs
