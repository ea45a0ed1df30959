"""Texts that a caller has in memory: checked, and in windows of bounded size.

Pure; any thread may call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from server.errors import InvalidRequest
from server.inference.inputs import TextInputs
from server.offline.texts import WINDOW_CHARS, WINDOW_TEXTS


@dataclass(frozen=True, slots=True)
class TextSlice(TextInputs):
    """Consecutive texts of a longer list."""

    start: int  # index of the first one in the list

    def position(self, index: int) -> str:
        """How an error message names the text at `index`: by its index in the whole list."""
        return f"input[{self.start + index}]"


def check_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list.

    Args:
        texts: in the order in which their vectors are wanted; nothing is read of what is no text
            or has no order of its own.

    Raises:
        InvalidRequest: one is no string, empty, or no Unicode; names it as `input[3]`. Or this is
            one string, bytes, a set or a mapping, or cannot be iterated over.
    """
    if isinstance(texts, str):
        raise InvalidRequest("texts must be a sequence of strings, not one string", param="input")
    # The order of a set is not the caller's, and a mapping's values would be lost without a word.
    if isinstance(texts, bytes | bytearray | set | frozenset | Mapping):
        raise _no_texts(texts)
    try:
        source = iter(texts)
    except TypeError:
        raise _no_texts(texts) from None
    checked = list(source)
    for index, text in enumerate(checked):
        if not isinstance(text, str):
            raise _invalid(index, f"must be a string, not {type(text).__name__}")
        if not text:
            raise _invalid(index, "must not be an empty string")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise _invalid(
                    index, f"holds a lone surrogate at character {error.start}"
                ) from None
    return checked


def _no_texts(found: object) -> InvalidRequest:
    return InvalidRequest(
        f"texts must be a sequence of strings, not {type(found).__name__}", param="input"
    )


def _invalid(index: int, rule: str) -> InvalidRequest:
    return InvalidRequest(f"input[{index}] {rule}", param="input")


def slices_of(texts: Sequence[str]) -> Iterator[TextSlice]:
    """The texts in windows, which end where those of a file with these lines would."""
    start, chars = 0, 0
    for index, text in enumerate(texts):
        chars += len(text)
        end = index + 1
        if end - start == WINDOW_TEXTS or chars >= WINDOW_CHARS or end == len(texts):
            yield TextSlice(is_list=True, texts=list(texts[start:end]), start=start)
            start, chars = end, 0
