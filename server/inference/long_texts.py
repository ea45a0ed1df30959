"""Token ids of a long text, window by window, as one pass over the whole text would give them.

A pass over 32 MiB would take gigabytes, and many a text has no place where every tokenizer cuts:
Chinese has no blanks, a data URL neither. So the windows overlap, and are joined where they agree:

    one window  .......................|.........)      what is behind its end it does not know
    the next               (...........|.................
                           nor this one what is before  | the seam: the same two tokens in both

What is behind the window's end must not matter to the seam. Ids up to a boundary between two tokens
do not depend on what follows, and of so many positions in a row as the longest token has one is
such a boundary. So the overlap is encoded with each of so many ends, and what all of these begin
with is taken as certain. Where no seam is found the window grows, up to MAX_WINDOW_CHARS. A token
longer than any in the vocabulary stands for something unknown, such as a word of a million letters
to WordPiece, and is one token in however many windows it is seen.

So the ids are exact unless one depends on what is more than MAX_WINDOW_CHARS away. If it does, the
text is cut as if two texts met there, which makes a few tokens near the cut others. What is known:

- a Unigram model may find several divisions of a run equally probable ("!!" "!" and "!" "!!").
  Rounding decides then, of a sum that begins with the text. Behind the first window such pieces may
  lie in another order, and in a run of more than SEAM_CHARS a piece may be divided;
- a run of more than MAX_WINDOW_CHARS that a vocabulary divides from its end, or that the normaliser
  removes inside of a word or puts in order (combining marks);
- a text of nothing but tokens of more than MAX_ENDS characters.

Keeps no state; any thread may call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import NamedTuple

from tokenizers import Tokenizer as RustTokenizer

WINDOW_CHARS = 65_536
# Its tokens may take 0.5 kB a character.
MAX_WINDOW_CHARS = 4 * WINDOW_CHARS
# Behind a seam and before the window's end: more than the longest word that WordPiece looks up.
CONTEXT_CHARS = 256
# Where a seam is looked for.
SEAM_CHARS = 512
# Longer tokens (of blanks, in some vocabularies) are rare, and each end costs a pass.
MAX_ENDS = 128


class _Tokens(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]]  # what of the text each stands for, in characters

    def begun(self, position: int) -> int:
        """How many begin before this position."""
        return bisect_left(self.spans, (position, 0))


class _Seam(NamedTuple):
    kept: int  # tokens of the window
    start: int  # of the next window, in characters from this one's start
    skipped: int  # tokens of the next window, which stand for text that the kept ones hold


def encode_windows(rust: RustTokenizer, text: str, longest_token: int) -> Iterator[list[int]]:
    """The ids of a text without special tokens, a window's at a time; some may give none.

    Args:
        longest_token: characters of the vocabulary's longest token.
    """
    ends = min(longest_token, MAX_ENDS)
    size = WINDOW_CHARS
    start = skipped = 0
    window, seam = "", _Seam(0, 0, 0)
    ids: list[int] = []
    while start + size < len(text):
        if text[start : start + size] != window:  # else it is one long run of the same
            window = text[start : start + size]
            tokens = _encode(rust, [window])[0]
            found = _find_seam(rust, window, tokens, ends)
            if found is None and size < MAX_WINDOW_CHARS:
                size *= 2
                continue
            ids, seam = tokens.ids, found or _cut(window, tokens, ends)
        yield ids[skipped : seam.kept]
        start, skipped = start + seam.start, seam.skipped
    yield _encode(rust, [text[start:]])[0].ids[skipped:]


def _encode(rust: RustTokenizer, texts: list[str]) -> list[_Tokens]:
    encodings = rust.encode_batch(texts, add_special_tokens=False)  # gives the interpreter away
    return [_Tokens(encoding.ids, encoding.offsets) for encoding in encodings]


def _with_each_end(rust: RustTokenizer, window: str, start: int, ends: int) -> list[_Tokens]:
    """The window from `start` on, with its last characters gone one after the other."""
    return _encode(rust, [window[start : len(window) - cut] for cut in range(ends)])


def _zone(window: str, ends: int) -> tuple[int, int]:
    """Where a seam may be: first position, and the first behind."""
    limit = len(window) - ends - CONTEXT_CHARS
    return limit - SEAM_CHARS, limit


def _find_seam(rust: RustTokenizer, window: str, tokens: _Tokens, ends: int) -> _Seam | None:
    """Where the window and one that begins in its last part agree, whatever follows."""
    begin, limit = _zone(window, ends)
    first, behind = tokens.begun(begin), tokens.begun(limit)
    if behind - first >= 2:
        return _find_pair(rust, tokens, window, (first, behind), ends)
    token_start, token_end = tokens.spans[behind - 1] if behind else (0, 0)
    if token_end > limit:
        longer = token_end - token_start > ends
        return _find_unknown(rust, tokens, window, behind, ends) if longer else None
    # Nothing here gives a token. A blank is between two words; what the normaliser removes may be
    # inside of one.
    gap = range(max(token_end, begin), limit)
    blank = next((place for place in gap if window[place].isspace()), None)
    return None if blank is None else _Seam(behind, blank, 0)


def _find_pair(
    rust: RustTokenizer, tokens: _Tokens, window: str, zone: tuple[int, int], ends: int
) -> _Seam | None:
    """The last two tokens of the window, among the numbers in `zone`, that are certain."""
    first, behind = zone
    ids, spans = tokens
    start = spans[first][0]  # from a token's start on a tokenizer is soonest in step again
    rows = [
        [(token_id, start + span[0]) for token_id, span in zip(one.ids, one.spans, strict=True)]
        for one in _with_each_end(rust, window, start, ends)
    ]
    columns = zip(*rows, strict=False)
    certain = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    pairs = {pair: number for number, pair in enumerate(pairwise(certain), start=1)}
    for number in range(behind - 1, first, -1):
        left, right = ((ids[n], spans[n][0]) for n in (number - 1, number))
        # Of equal tokens there may be a run, which rounding may divide otherwise from the text's start.
        if left[0] != right[0] and (left, right) in pairs:
            return _Seam(number, start, pairs[left, right])
    return None


def _find_unknown(
    rust: RustTokenizer, tokens: _Tokens, window: str, kept: int, ends: int
) -> _Seam | None:
    """A place inside of the window's token number `kept - 1`, if it goes on in the next one."""
    begin, limit = _zone(window, ends)
    found = set()
    for one in _with_each_end(rust, window, begin, ends):
        number = one.begun(limit - begin)
        goes_on = number > 0 and one.spans[number - 1][1] > limit - begin
        found.add((number, one.ids[number - 1] if goes_on else None))
    number, token_id = found.pop()
    return _Seam(kept, begin, number) if not found and token_id == tokens.ids[kept - 1] else None


def _cut(window: str, tokens: _Tokens, ends: int) -> _Seam:
    """Where two texts meet, if there is no seam."""
    begin, limit = _zone(window, ends)
    kept = tokens.begun(limit)
    if kept and (start := tokens.spans[kept - 1][0]) >= begin:
        return _Seam(kept - 1, start, 0)
    return _Seam(kept, limit, 0)
