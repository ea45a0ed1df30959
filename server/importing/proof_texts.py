"""The texts by which an imported model is compared; pure data."""

from __future__ import annotations

REFERENCE_TEXTS = ("The quick brown fox jumps over the lazy dog.", "¿Dónde está la biblioteca? 42")
# Lengths, scripts and oddities; the last one is longer than any model reads in one go.
PARITY_TEXTS = (
    *REFERENCE_TEXTS,
    "a",
    "Hello, world",
    "HELLO, WORLD!",
    "  blanks in front, behind and   between  ",
    "line one\nline two\r\n\tindented",
    "naïve façade, Zürich, smørrebrød, Łódź",
    "敏捷的棕色狐狸跳过了懒狗。",
    "Быстрая бурая лиса перепрыгивает через ленивую собаку.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول",
    "def add(a: int, b: int) -> int:\n    return a + b  # 1 + 1 == 2",
    "👩‍💻 emoji 🎉 and symbols: ± ≤ € ½ ™ http://example.com/a?b=c&d=%20e",
    "An embedding maps a text to a vector so that texts of like meaning lie close to each other.",
    " ".join(f"Sentence {number} of a long document about cats, dogs and taxes." for number in range(60)),
    " ".join(f"word{number}" for number in range(20_000)),
)  # fmt: skip
# Of 1 to 60 tokens, so that padding outweighs what is there.
COMPANY_TEXTS = (*PARITY_TEXTS[2:10], PARITY_TEXTS[-2][:300])
LONGEST_TEXT = PARITY_TEXTS[-1]
# For the witness, which takes its time: short ones, and one that is longer than the windows and the
# near distances that families have.
WITNESS_TEXTS = (*PARITY_TEXTS[:4], PARITY_TEXTS[8], PARITY_TEXTS[-2][:400])
# Without the two long ones: half precision takes its time on a CPU.
HALF_PRECISION_TEXTS = PARITY_TEXTS[:-2]
