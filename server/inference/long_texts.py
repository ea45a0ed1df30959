"""Token ids of a long text, window by window, as one pass over the whole text would give them.

A pass over 32 MiB would take gigabytes, and many a text has no place where every tokenizer cuts:
Chinese has no blanks, a data URL neither. So the windows overlap, and are joined where they agree:

    one window  .......................|.........)      what is behind its end it does not know
    the next               (...........|.................
                           nor this one what is before  | the seam: from here on both are the same

What is behind the window's end must not matter to the seam. Ids up to a boundary between two tokens
do not depend on what follows, and of so many positions in a row as the longest token has one is
such a boundary. So the overlap is encoded with each of so many ends, and what all of these begin
with is taken as certain. An added token may take the white space before it (`lstrip`); if there is
such a token, each end without its white space is one more end.

What is before the next window's start must not matter either. It begins with a piece of the
pre-tokenizer, if one begins in the overlap (of "123456" there may be pieces of three digits), and
all tokens from the seam to the window's end must be the same in both. These are more than
CONTEXT_CHARS; two equal tokens alone are often chance. Where no seam is found the window grows, up
to MAX_WINDOW_CHARS. A token longer than any in the vocabulary stands for something unknown, such as
a word of a million letters to WordPiece, and is one token in however many windows it is seen.

So the ids are exact unless one depends on what is more than MAX_WINDOW_CHARS away. If it does, two
equal tokens in a row must do; without these the text is cut as if two texts met there. Some tokens
near the cut are others then, and in a run whose division depends on where it began all to its end.
What is known:

- a Unigram model may find several divisions of a run equally probable ("!!" "!" and "!" "!!").
  Rounding decides then, of a sum that begins with the text. Behind the first window such pieces may
  lie in another order, and in a run of more than SEAM_CHARS a piece may be divided;
- a run of more than MAX_WINDOW_CHARS that a vocabulary divides from its end, or that the normaliser
  removes inside of a word or puts in order (combining marks);
- a run of white space of more than MAX_WINDOW_CHARS before or behind an added token that takes it;
- in a piece of the pre-tokenizer of more than SEAM_CHARS, the same tokens over CONTEXT_CHARS are no
  proof: what is behind could still depend on what is before. No vocabulary that does so is known;
- an added token that is looked for in the normalised text and takes white space that the normaliser
  has made of other characters;
- a text of nothing but tokens of more than MAX_ENDS characters;
- a run of one and the same token over MAX_WINDOW_CHARS: what a normaliser puts before a text ("▁")
  is also at the cut;
- white space over SEAM_CHARS at a window's end, if the normaliser removes it only at a text's end
  (`Strip`) and the vocabulary has tokens of it: some of these may be missing.

Keeps no state; any thread may call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import pairwise, takewhile
from typing import NamedTuple

from tokenizers import Tokenizer as RustTokenizer

# A longer text is encoded in windows of so many.
LONG_TEXT_CHARS = 65_536
# A window grows no further; its tokens may take 0.5 kB a character.
MAX_WINDOW_CHARS = 4 * LONG_TEXT_CHARS
# Behind a seam and before the window's end: more than the longest word that WordPiece looks up.
CONTEXT_CHARS = 256
# Where a seam is looked for.
SEAM_CHARS = 512
# Longer tokens (of blanks, in some vocabularies) are rare, and each end costs a pass.
MAX_ENDS = 128
# What the library takes for white space around added tokens: Unicode's; str.isspace() knows more.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class _Tokens(NamedTuple):
    ids: list[int]
    spans: list[tuple[int, int]]  # what of the text each stands for, in characters
    pieces: list[int | None]  # of the pre-tokenizer's pieces, which each is in

    def begun(self, position: int) -> int:
        """How many begin before this position."""
        return bisect_left(self.spans, (position, 0))


class _Ends(NamedTuple):
    """What may follow a window is unknown, so it is also encoded with other ends."""

    cuts: int  # so many last characters are left out, one after the other
    stripped: bool  # each without its last white space as well


class _Seam(NamedTuple):
    kept: int  # tokens of the window
    start: int  # of the next window, in characters from this one's start
    skipped: int  # tokens of the next window, which stand for text that the kept ones hold


def encode_windows(rust: RustTokenizer, text: str, longest_token: int) -> Iterator[list[int]]:
    """The ids of a text without special tokens, a window's at a time; some may give none.

    Args:
        longest_token: characters of the vocabulary's longest token.
    """
    added = rust.get_added_tokens_decoder().values()
    ends = _Ends(min(longest_token, MAX_ENDS), any(token.lstrip for token in added))
    size = LONG_TEXT_CHARS
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
            found = found or _find_seam(rust, window, tokens, ends, in_step=False)
            ids, seam = tokens.ids, found or _cut(window, tokens, ends)
        yield ids[skipped : seam.kept]
        start, skipped = start + seam.start, seam.skipped
    yield _encode(rust, [text[start:]])[0].ids[skipped:]


def _encode(rust: RustTokenizer, texts: list[str]) -> list[_Tokens]:
    encodings = rust.encode_batch(texts, add_special_tokens=False)  # gives the interpreter away
    return [_Tokens(one.ids, one.offsets, one.word_ids) for one in encodings]


def _with_each_end(rust: RustTokenizer, window: str, start: int, ends: _Ends) -> list[_Tokens]:
    """The window from `start` on with each of the ends, its own first."""
    texts = [window[start : len(window) - cut] for cut in range(ends.cuts)]
    if ends.stripped:
        texts += {text.rstrip(WHITE_SPACE) for text in texts}.difference(texts)
    return _encode(rust, texts)


def _zone(window: str, ends: _Ends) -> tuple[int, int]:
    """Where a seam may be: first position, and the first behind."""
    limit = len(window) - ends.cuts - CONTEXT_CHARS
    return limit - SEAM_CHARS, limit


def _find_seam(
    rust: RustTokenizer, window: str, tokens: _Tokens, ends: _Ends, *, in_step: bool = True
) -> _Seam | None:
    """Where the window and one that begins in its last part agree, whatever follows.

    Args:
        in_step: to the window's end; else two tokens are enough.
    """
    begin, limit = _zone(window, ends)
    first, behind = tokens.begun(begin), tokens.begun(limit)
    if behind - first >= 2:
        return _find_pair(rust, tokens, window, (first, behind), ends, in_step)
    token_start, token_end = tokens.spans[behind - 1] if behind else (0, 0)
    if token_end > limit:
        longer = token_end - token_start > ends.cuts
        return _find_unknown(rust, tokens, window, behind, ends) if longer else None
    # Nothing here gives a token. A blank is between two words; what the normaliser removes may be
    # inside of one.
    gap = range(max(token_end, begin), limit)
    blank = next((place for place in gap if window[place].isspace()), None)
    return None if blank is None else _Seam(behind, blank, 0)


def _find_pair(
    rust: RustTokenizer,
    tokens: _Tokens,
    window: str,
    zone: tuple[int, int],
    ends: _Ends,
    in_step: bool,
) -> _Seam | None:
    """The last two tokens of the window, among the numbers in `zone`, that are certain."""
    first, behind = zone
    ids, spans, pieces = tokens
    # From a piece's start on a tokenizer is in step again, from a token's start soonest.
    begins = (n for n in range(max(first, 1), behind - 1) if pieces[n] != pieces[n - 1])
    first = next(begins, first)
    start = spans[first][0]
    rows = [
        [(token_id, start + span[0]) for token_id, span in zip(one.ids, one.spans, strict=True)]
        for one in _with_each_end(rust, window, start, ends)
    ]
    columns = zip(*rows, strict=False)
    certain = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
    pairs = {pair: number for number, pair in enumerate(pairwise(certain), start=1)}
    if in_step:
        first = max(first, _same_from(tokens, rows[0]))
    for number in range(behind - 1, first, -1):
        left, right = ((ids[n], spans[n][0]) for n in (number - 1, number))
        # Of equal tokens there may be a run, which rounding may divide otherwise from the text's start.
        if left[0] != right[0] and (left, right) in pairs:
            return _Seam(number, start, pairs[left, right])
    return None


def _same_from(tokens: _Tokens, others: list[tuple[int, int]]) -> int:
    """The number of the token from which on both hold the same, to their common end."""
    number = len(tokens.ids)
    for other in reversed(others):
        if number == 0 or other != (tokens.ids[number - 1], tokens.spans[number - 1][0]):
            break
        number -= 1
    return number


def _find_unknown(
    rust: RustTokenizer, tokens: _Tokens, window: str, kept: int, ends: _Ends
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


def _cut(window: str, tokens: _Tokens, ends: _Ends) -> _Seam:
    """Where two texts meet, if there is no seam."""
    begin, limit = _zone(window, ends)
    kept = tokens.begun(limit)
    if kept and (start := tokens.spans[kept - 1][0]) >= begin:
        return _Seam(kept - 1, start, 0)
    return _Seam(kept, limit, 0)
