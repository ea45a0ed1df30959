"""How many values a JSON text has, counted a piece at a time and without parsing it.

A parser holds Python's lock for its whole call: 32 MiB of small values take it some 150 ms, in which
nothing else runs. What has few values is mostly strings, which a parser reads at 1 GB/s. Pure; any
thread may call.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

PIECE_BYTES = 64 * 1024
MAX_DEPTH = 20_000  # of brackets; msgspec gives up before, at the recursion limit of Python
_MARKS = (b",", b"[", b"{")  # one before each value, but for one in an object
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_CLOSING = bytes.maketrans(b"[{", b"]}")


def pieces(content: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Copies of PIECE_BYTES each; between two of them other threads may have their turn."""
    whole = memoryview(content)
    return (
        bytes(whole[start : start + PIECE_BYTES]) for start in range(0, whole.nbytes, PIECE_BYTES)
    )


def beginning_of(
    text: bytes | bytearray, *, most_values: int, most_strings: int
) -> bytearray | None:
    """What a JSON text of too many values begins with; None if it has no more than those.

    The beginning is a whole text again: what is open is closed. If the text is no JSON this may be
    none either, or None, but then a parser stops before it has read more than those values.

    Args:
        most_values: counted by commas and opening brackets, outside of strings.
        most_strings: names of fields are some, too.
    """
    if _has_few(text, most_values, most_strings):
        return None
    start = num_values = num_quotes = 0
    open_brackets = b""
    in_string = is_escaped = False
    for piece in pieces(text):
        # Of the same length, so that a place in it is one in the text.
        plain = (b" " + piece[1:] if is_escaped else piece).replace(b"\\\\", b"  ")
        is_escaped = plain.endswith(b"\\")
        parts = plain.replace(b'\\"', b"  ").split(b'"')
        parts[not in_string :: 2] = [b" " * len(part) for part in parts[not in_string :: 2]]
        in_string ^= len(parts) % 2 == 0
        outside = b'"'.join(parts)
        num_here = sum(map(outside.count, _MARKS))
        if len(parts) // 2 > 2 * num_here + 2:  # strings in a row, as in no JSON
            return None
        num_values += num_here
        num_quotes += len(parts) - 1
        if num_here and (num_values > most_values or num_quotes > 2 * most_strings):
            place = max(map(outside.rfind, _MARKS))
            found = bytearray(memoryview(text)[: start + place])
            found += b"" if outside[place] == ord(",") else b"0"
            brackets = open_brackets + outside[:place].translate(None, _NO_BRACKETS)
            found += _left_open(brackets)[::-1].translate(_CLOSING)
            return found
        open_brackets = _left_open(open_brackets + outside.translate(None, _NO_BRACKETS))
        if len(open_brackets) > MAX_DEPTH:  # each further piece would look at all of them again
            return None
        start += len(piece)
    return None


def _has_few(text: bytes | bytearray, most_values: int, most_strings: int) -> bool:
    """Whether it has no more even if what stands in strings is counted, which takes a tenth."""
    num_values = num_quotes = 0
    for start in range(0, len(text), PIECE_BYTES):
        stop = start + PIECE_BYTES
        num_values += sum(text.count(mark, start, stop) for mark in _MARKS)
        num_quotes += text.count(b'"', start, stop)
        if num_values > most_values or num_quotes > 2 * most_strings:
            return False
    return True


def _left_open(brackets: bytes) -> bytes:
    """Those that open and are not closed."""
    codes = np.frombuffer(brackets, np.uint8)
    opens = codes & 2 != 0  # in `[` and `{`, and not in `]` and `}`
    depth = np.cumsum(np.where(opens, np.int32(1), np.int32(-1)), dtype=np.int32)
    least_from_here = np.minimum.accumulate(depth[::-1])[::-1]
    left: bytes = codes[opens & (depth == least_from_here)].tobytes()
    return left
