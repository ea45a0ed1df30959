"""Texts from a file or a pipe, in windows of bounded size, each named by its line.

Reads each byte once and in order, so a pipe will do. A window ends by the number of texts and
characters alone: the same input gives the same windows. Knows nothing of models. Not to be shared
between threads.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar

import numpy as np
import orjson

from server.errors import TextFileError, unusable
from server.inference.inputs import TextInputs

T = TypeVar("T")

STDIN = "-"
# Enough that the engine always finds texts that go together; little is lost with a window.
WINDOW_TEXTS = 1024
WINDOW_CHARS = 256 * 1024
# As large as a request over HTTP may be: a file without line ends must not fill the memory.
MAX_LINE_BYTES = 32 * 1024 * 1024
_SKIP_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class Mark(NamedTuple):
    """A place between two lines of an input, and what lies before it."""

    bytes: int
    lines: int
    texts: int
    sha256: str  # of these bytes


START = Mark(0, 0, 0, hashlib.sha256().hexdigest())


@dataclass(frozen=True, slots=True)
class TextWindow(TextInputs):
    """Texts that are embedded together, and where the input stands behind them."""

    source: str
    lines: list[int]  # counted from 1
    end: Mark

    def position(self, index: int) -> str:
        """How an error message names the text at `index`."""
        return f"{self.source} line {self.lines[index]}"


class TextReader:
    """The texts of one input; a context manager that closes the file, but not standard input.

    Args:
        path: a `.txt` file (one text a line), a `.jsonl` file (one string a line, or one object
            with the text in `field`), or `-` for standard input, read like a `.txt` file.
        field: name of the objects' field that holds the text.
        skip_blank: leave out texts without anything but white space, which are refused otherwise.

    Raises:
        TextFileError: the file cannot be opened, or its name tells no format.
    """

    def __init__(self, path: Path, *, field: str = "text", skip_blank: bool = False) -> None:
        self.name = "standard input" if str(path) == STDIN else str(path)
        if str(path) != STDIN and path.suffix not in (".txt", ".jsonl"):
            _check_there(path)
            raise TextFileError(
                f"{path}: the name must end in .txt (one text a line) or .jsonl, or be - for lines "
                "from standard input"
            )
        self._json = path.suffix == ".jsonl"
        self._field = field
        self._skip_blank = skip_blank
        self._file, self.size_bytes = _open(path, self.name)
        self._is_ours = str(path) != STDIN
        self._hash = hashlib.sha256()
        self._mark = START

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if (
            self._is_ours
        ):  # closing waits for a thread that reads, which a silent pipe never lets go
            self._file.close()

    def skip(self, mark: Mark) -> None:
        """Go to a place that was reached before.

        Raises:
            TextFileError: what lies before it is not what was there.
        """
        left = mark.bytes
        while left:
            chunk = self._read(self._file.read, min(left, _SKIP_BYTES))
            if not chunk:
                raise TextFileError(
                    f"{self.name} has changed: it has {mark.bytes - left} bytes, and {mark.bytes} "
                    "of it were embedded already"
                )
            self._hash.update(chunk)
            left -= len(chunk)
        if self._hash.hexdigest() != mark.sha256:
            raise TextFileError(
                f"{self.name} has changed: its first {mark.lines} lines are not those that were "
                "embedded already"
            )
        self._mark = mark

    def windows(
        self, *, most_texts: int = WINDOW_TEXTS, most_chars: int = WINDOW_CHARS
    ) -> Iterator[TextWindow]:
        """The texts from here on; every window holds at least one.

        Args:
            most_texts: a window ends with so many.
            most_chars: and with the text by which it has so many characters.

        Raises:
            TextFileError: a line cannot be read or holds no text; those before it came out already.
        """
        texts: list[str] = []
        lines: list[int] = []
        chars = 0
        try:
            for number, text in self._texts():
                texts.append(text)
                lines.append(number)
                chars += len(text)
                if len(texts) == most_texts or chars >= most_chars:
                    yield self._window(texts, lines)
                    texts, lines, chars = [], [], 0
        except TextFileError:
            if texts:
                yield self._window(texts, lines)
            raise
        if texts:
            yield self._window(texts, lines)

    def _window(self, texts: list[str], lines: list[int]) -> TextWindow:
        end = self._mark._replace(sha256=self._hash.hexdigest())
        return TextWindow(is_list=True, texts=texts, source=self.name, lines=lines, end=end)

    def _texts(self) -> Iterator[tuple[int, str]]:
        while raw := self._read(self._file.readline, MAX_LINE_BYTES + 1):
            number = self._mark.lines + 1
            place = f"{self.name} line {number}"
            if len(raw) > MAX_LINE_BYTES:
                raise TextFileError(f"{place}: longer than {MAX_LINE_BYTES} bytes")
            text = self._text(raw.removeprefix(_BOM) if number == 1 else raw, place)
            self._hash.update(raw)
            found = text is not None
            self._mark = Mark(
                self._mark.bytes + len(raw), number, self._mark.texts + found, self._mark.sha256
            )
            if text is not None:
                yield number, text

    def _text(self, raw: bytes, place: str) -> str | None:
        """What a line says; None for a blank one that is to be left out."""
        raw = raw.removesuffix(b"\n").removesuffix(b"\r")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TextFileError(f"{place}: not UTF-8 at byte {error.start + 1}") from None
        if self._json and text.strip():
            text = self._json_text(raw, place)
        if text.strip():
            return text
        if self._skip_blank:
            return None
        raise TextFileError(f"{place}: blank; leave such lines out with --skip-blank")

    def _json_text(self, raw: bytes, place: str) -> str:
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise TextFileError(f"{place}: not JSON: {error.msg}") from None
        if isinstance(value, dict):
            if self._field not in value:
                raise TextFileError(
                    f"{place}: has no field {self._field!r}; name the text's field with --field"
                )
            value = value[self._field]
        if not isinstance(value, str):
            raise TextFileError(
                f"{place}: must be a string, or an object whose {self._field!r} is one"
            )
        return value

    def _read(self, read: Callable[[int], bytes], size: int) -> bytes:
        try:
            return read(size)
        except OSError as error:
            raise TextFileError(f"{self.name}: {error.strerror}") from error


def sample_texts(files: list[Path], *, field: str, most: int, seed: int) -> tuple[list[str], int]:
    """Distinct texts in an order fixed by `seed`, and how many the files hold.

    Of more than `most` texts so many are drawn, so that the files may be of any size. Blank lines
    are left out.

    Raises:
        TextFileError: a file cannot be read.
    """
    random = np.random.default_rng(seed)

    def texts() -> Iterator[str]:
        for file in files:
            with TextReader(file, field=field, skip_blank=True) as reader:
                yield from itertools.chain.from_iterable(w.texts for w in reader.windows())

    drawn, count = draw(texts(), most, random)
    distinct = list(dict.fromkeys(text.strip() for text in drawn))
    return [distinct[place] for place in random.permutation(len(distinct))], count


def draw(source: Iterable[T], most: int, random: np.random.Generator) -> tuple[list[T], int]:
    """All of the source, or `most` drawn from it, each with the same chance; and how many it held.

    Reads it once (Vitter, 1985, algorithm R). What was drawn is in no particular order.
    """
    drawn: list[T] = []
    count = 0
    for count, one in enumerate(source, start=1):
        if len(drawn) < most:
            drawn.append(one)
        elif (place := int(random.integers(count))) < most:
            drawn[place] = one
    return drawn, count


def _check_there(path: Path) -> None:
    try:
        path.stat()
    except OSError as error:
        raise TextFileError(unusable(str(path), error)) from error


def _open(path: Path, name: str) -> tuple[BinaryIO, int | None]:
    """The file and its size, None if it has none."""
    try:
        # A buffer of our own over the pipe: Python stops at its end if a thread still reads stdin.
        source = sys.stdin.fileno() if str(path) == STDIN else path
        file = open(source, "rb", closefd=source is path)  # noqa: SIM115
        status = os.fstat(file.fileno())
    except OSError as error:
        raise TextFileError(unusable(name, error)) from error
    return file, status.st_size if stat.S_ISREG(status.st_mode) else None
