"""The texts of the benchmark: pseudo-English with the lengths that servers see, equal for all.

Every word below is one token of BERT's uncased vocabulary and so is the full stop, so a text's
token count is known without a tokenizer (the tests compare the two), and no server has to cut one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

# By falling frequency, about as in English; drawn as Zipf's law has it.
_ENGLISH = """
the of and to in is that it was for on are as with his they at be this from have or by one had not
but what all were when we there can an your which their said if do will each about how up out them
then she many some so these would other into has more her two like him see time could no make than
first been its who now people my made over did down only way find use may water long little very
after words called just where most know get through back much before go good new write our used me
man too any day same right look think also around another came come work three word must because
does part even place well such here take why things help put years different away again off went
old number great tell men say small every found still between name should home big give air line
set own under read last never us left end along while might next sound below saw something thought
both few those always looked show large often together asked house world going want school
important until form food keep children feet land side without boy once animals life enough took
sometimes four head above kind began almost live page got earth need far hand high year mother
light parts country father let night following picture being study second eyes soon times story
boys since white days ever paper hard near sentence better best across during today others however
sure means knew try told young miles sun ways thing whole hear example heard several change answer
room sea against top turned learn point city play toward five using himself usually money seen car
morning body upon family later turn move face door cut done group true half red fish plants living
wanted black short united run book gave order open ground cold really table remember tree course
front american space inside ago sad early learned brought close nothing though idea lived became
add become grow draw yet less wind behind cannot letter among able dog shown mean english rest
perhaps certain six feel fire ready green yes built special ran full town complete oh person hot
anything hold state list stood hundred ten fast felt kept notice strong voice probably area horse
matter stand box start class piece surface river common stop talk whether fine round dark past
ball girl road blue instead either held already warm gone finally summer understand moon animal
mind outside power problem longer winter deep heavy carefully follow beautiful everyone leave
everything game system bring watch shell dry within floor ice ship themselves begin fact third
quite carry distance although sat possible heart real simple snow rain suddenly leaves easy
language report government company market price service program computer history science research
development information education community business industry society policy economy member public
national local social political economic general recent major available various particular
"""
WORDS = _ENGLISH.split()
_CUMULATIVE = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(WORDS))))

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
SENTENCE_WORDS = (12, 24)
QUERY_WORDS = (4, 12)
PASSAGE_WORDS = (40, 120)
DOCUMENT_WORDS = (150, 230)
EXACT_TOKENS = 128
_MIXED = ("query", "passage", "document")
_MIXED_PERCENT = (40, 40, 20)


def num_tokens(text: str) -> int:
    """Tokens of a text made here, special tokens included."""
    return text.count(" ") + 1 + text.count(".") + SPECIAL_TOKENS


def query(random: Random) -> str:
    """4 to 12 words, without a full stop."""
    return " ".join(_words(random, random.randint(*QUERY_WORDS)))


def passage(random: Random) -> str:
    """40 to 120 words in sentences."""
    return _sentences(random, random.randint(*PASSAGE_WORDS))


def document(random: Random) -> str:
    """150 to 230 words in sentences: the most that 256 tokens surely hold."""
    return _sentences(random, random.randint(*DOCUMENT_WORDS))


def mixed(random: Random) -> str:
    """40 % queries, 40 % passages, 20 % documents: what an index and its users send."""
    (kind,) = random.choices(_MIXED, _MIXED_PERCENT)
    return MAKERS[kind](random)


def exact128(random: Random) -> str:
    """One sentence of 128 tokens, for comparing with a rate of matrix products."""
    return _sentence(random, EXACT_TOKENS - SPECIAL_TOKENS - 1)


MAKERS: dict[str, Callable[[Random], str]] = {
    "query": query,
    "passage": passage,
    "document": document,
    "mixed": mixed,
    "exact128": exact128,
}


def make_requests(kind: str, seed: str, count: int, *, texts: int) -> list[list[str]]:
    """`count` lists of `texts` texts; another seed gives other texts, the same seed the same."""
    random = Random(f"{kind} {seed}")
    make = MAKERS[kind]
    return [[make(random) for _ in range(texts)] for _ in range(count)]


def _words(random: Random, count: int) -> list[str]:
    return random.choices(WORDS, cum_weights=_CUMULATIVE, k=count)


def _sentence(random: Random, count: int) -> str:
    return " ".join(_words(random, count)).capitalize() + "."


def _sentences(random: Random, count: int) -> str:
    sentences = []
    while count:
        size = min(count, random.randint(*SENTENCE_WORDS))
        sentences.append(_sentence(random, size))
        count -= size
    return " ".join(sentences)
