"""Texts of files, each with its line, for sides that all get the same ones.

Knows no models. Pure but for reading the files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from server.offline.texts import START, TextReader, TextWindow, draw


@dataclass(frozen=True, slots=True)
class TextLine:
    """One text and where it stands."""

    number: int  # among all texts of all files
    source: str
    line: int  # counted from 1
    text: str

    @property
    def place(self) -> str:
        """How messages name it."""
        return f"{self.source} line {self.line}"


def read_text_lines(
    files: Sequence[Path], *, field: str, skip_blank: bool, most: int, seed: int
) -> tuple[list[TextLine], int]:
    """The texts in the order of their files, and how many there are in these.

    Of more than `most` so many are drawn, in a way that `seed` fixes.

    Raises:
        TextFileError: a file cannot be read, or a line holds no text.
    """

    def lines() -> Iterator[TextLine]:
        numbers = itertools.count()
        for file in files:
            with TextReader(file, field=field, skip_blank=skip_blank) as reader:
                for window in reader.windows():
                    for line, text in zip(window.lines, window.texts, strict=True):
                        yield TextLine(next(numbers), window.source, line, text)

    drawn, count = draw(lines(), most, np.random.default_rng(seed))
    return sorted(drawn, key=attrgetter("number")), count


def windows_of(
    lines: Sequence[TextLine], *, most_texts: int, most_chars: int
) -> Iterator[TextWindow]:
    """The same in windows, none of more than one file; `end.texts` counts those up to its end.

    Args:
        most_texts: a window ends with so many.
        most_chars: and before the text by which it would have more characters, if it has one yet.
    """
    window: list[TextLine] = []
    done, chars = 0, 0
    for one in lines:
        full = len(window) == most_texts or chars + len(one.text) > most_chars
        if window and (full or one.source != window[0].source):
            done += len(window)
            yield _window(window, done)
            window, chars = [], 0
        window.append(one)
        chars += len(one.text)
    if window:
        yield _window(window, done + len(window))


def _window(lines: Sequence[TextLine], done: int) -> TextWindow:
    return TextWindow(
        is_list=True,
        texts=[one.text for one in lines],
        source=lines[0].source,
        lines=[one.line for one in lines],
        end=START._replace(texts=done, lines=lines[-1].line),
    )
