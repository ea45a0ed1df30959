"""What a text is embedded for: the purposes, what each is called, and the prompt a card has for it.

Publishers and providers call one purpose by many names; `PURPOSES` is the one table of them. Names
are compared without regard to case and to what stands between their words: RETRIEVAL_QUERY is
`retrieval.query`. Knows nothing of files or HTTP; pure, any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from server.catalog.fingerprint import Prompted
from server.errors import InvalidRequest, shortened

QUERY, DOCUMENT = "query", "document"  # every card takes them; without a prompt: the bare text
# Every purpose with its names; the first of those that a card has is the one that is meant. Sources:
# sentence-transformers 6 (query; document, passage, corpus), nomic-ai/nomic-embed-text-v1.5
# (search_query, search_document, classification, clustering), NovaSearch/stella_en_400M_v5
# (s2p_query, s2s_query), jinaai/jina-embeddings-v3 and v4 (retrieval.query, retrieval.passage,
# text-matching, separation, code.query, code.passage), Gemini's TaskType and MediaPipe's
# TextEmbeddingType (RETRIEVAL_DOCUMENT and the like), mteb's kinds of tasks, which are prompts of
# nomic-ai/nomic-embed-text-v2-moe and google/embeddinggemma-300m (STS, BitextMining and the like).
PURPOSES: Mapping[str, tuple[str, ...]] = {
    QUERY: ("query", "search_query", "web_search_query", "s2p_query", "retrieval.query"),
    DOCUMENT: (
        *("document", "passage", "corpus", "search_document"),
        *("retrieval.passage", "retrieval.document"),
    ),
    "classification": ("classification",),
    "clustering": ("clustering",),
    "similarity": (
        *("similarity", "STS", "text-matching", "semantic_similarity", "sentence_similarity"),
        "s2s_query",
    ),
    "separation": ("separation",),
    "question_answering": ("question_answering",),
    "fact_verification": ("fact_verification", "fact_checking"),
    "code.query": ("code.query", "code_retrieval_query", "code_retrieval"),
    "code.document": ("code.document", "code.passage"),
    "retrieval": ("retrieval",),
    "reranking": ("reranking",),
    "summarization": ("summarization",),
    "bitext_mining": ("bitext_mining",),
    "pair_classification": ("pair_classification",),
    "multilabel_classification": ("multilabel_classification",),
    "instruction_retrieval": ("instruction_retrieval",),
}
MAX_PROMPTS = 256
MAX_NAME_CHARS = 100

_BETWEEN_WORDS = re.compile(r"[-_. ]+")


def comparable(name: str) -> str:
    """The name without case and without what stands between its words."""
    return _BETWEEN_WORDS.sub("", name).casefold()


_PURPOSES_BY_NAME = {
    comparable(name): purpose for purpose, names in PURPOSES.items() for name in names
}


def purpose_of(name: str) -> str | None:
    """The purpose that goes by this name; None for names that the table does not have."""
    return _PURPOSES_BY_NAME.get(comparable(name))


def names_for(purpose: str, prompts: Mapping[str, str]) -> list[str]:
    """The names of the prompts for this purpose, the one that is meant by it first.

    A prompt with a text comes before an empty one, a name that is spelled as in `PURPOSES` before
    one that is not, and those in the order of the table; at last the alphabet decides.
    """
    spelled = PURPOSES[purpose]
    order = {comparable(name): place for place, name in enumerate(spelled)}
    return sorted(
        (name for name in prompts if purpose_of(name) == purpose),
        key=lambda name: (not prompts[name], name not in spelled, order[comparable(name)], name),
    )


def fault_of_names(names: Collection[str]) -> str | None:
    """Why prompts cannot have these names, which people are shown; None if they can."""
    if len(names) > MAX_PROMPTS:
        return f"{len(names)} prompts, at most {MAX_PROMPTS} can be served"
    for name in names:
        if not comparable(name):
            return f"{name[:MAX_NAME_CHARS]!r} is no name of a prompt"
        if len(name) > MAX_NAME_CHARS:
            return f"the name {name[:20]!r}... has more than {MAX_NAME_CHARS} characters"
        if not name.isprintable():
            return f"the name {name!r} has characters that cannot be printed"
    return None


class PromptTable:
    """What each `input_type` means to a card; made once for each, so that asking costs a look-up.

    A name of the card's own means that prompt, in any other spelling too; a name of the table means
    the card's prompt for that purpose. `query` and `document` without a prompt mean the bare text,
    and so does every purpose where a card has no prompts at all.

    Queries, documents and texts without a purpose share one fingerprint, the card's, since they are
    compared with each other. What another prompt decides has a fingerprint of its own, and that
    prompt is in no other.

    Args:
        model: the card's name, for the refusal.
        prompts: texts that are put before inputs, by the publisher's names.
        default: the name of the one that is meant where none is named.
        digest: a fingerprint over these prompts and all else that decides the card's vectors.
    """

    def __init__(
        self,
        model: str,
        prompts: Mapping[str, str],
        default: str | None,
        digest: Callable[[Prompted], str],
    ) -> None:
        self._model = model
        self._default = prompts[default] if default is not None else ""
        self._exact, self._alike = _texts_by_name(prompts)
        self._told = tuple(dict.fromkeys((QUERY, DOCUMENT, *(prompts or PURPOSES))))
        of_card = _of_card(prompts, default)
        self.fingerprint = digest(of_card)
        shared = {"", self._default, *of_card.prompts.values()}
        self._fingerprints = {
            text: digest(Prompted({}, None, prompt=text)) for text in {*prompts.values()} - shared
        }

    def text(self, input_type: str | None) -> str:
        """What is put before each input for this purpose, or without one; it may be empty.

        Raises:
            InvalidRequest: the card has no such prompt.
        """
        if input_type is None:
            return self._default
        found = self._exact.get(input_type)
        if found is None and len(input_type) <= MAX_NAME_CHARS:
            found = self._alike.get(comparable(input_type))
        if found is None:
            known = ", ".join(map(repr, self._told))
            raise InvalidRequest(
                f"Invalid value for 'input_type': input_type must be one of {known} for the model "
                f"'{self._model}', not {shortened(input_type, 50)!r}.",
                param="input_type",
            )
        return found

    def fingerprint_for(self, input_type: str | None) -> str:
        """The fingerprint of what is computed for this purpose.

        Raises:
            InvalidRequest: see `text`.
        """
        return self._fingerprints.get(self.text(input_type), self.fingerprint)


def _texts_by_name(prompts: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """What every name means: by names as they are spelled, and by comparable ones."""
    found = {purpose: names[0] for purpose in PURPOSES if (names := names_for(purpose, prompts))}
    both = {purpose: prompts.get(found.get(purpose, ""), "") for purpose in (QUERY, DOCUMENT)}
    meant = {purpose: prompts[name] for purpose, name in found.items()} | both
    alike = {
        name: meant.get(purpose, "")
        for name, purpose in _PURPOSES_BY_NAME.items()
        if purpose in meant or not prompts
    }
    # A card's own names come before the table's, and of two that are alike the one that is meant.
    alike |= {comparable(name): prompts[name] for name in sorted(prompts, reverse=True)}
    alike |= {comparable(name): prompts[name] for name in found.values()}
    return {**prompts, **both}, alike | both


def _of_card(prompts: Mapping[str, str], default: str | None) -> Prompted:
    """Those prompts that are in a card's own fingerprint, as they were when a card had no others.

    An empty prompt is none, but under the two names that cards have had from the beginning.
    """
    named = {purpose: names_for(purpose, prompts)[:1] for purpose in (QUERY, DOCUMENT)}
    found = {purpose: name for purpose, names in named.items() for name in names}
    purpose = next((purpose for purpose, name in found.items() if name == default), None)
    return Prompted(
        {one: prompts[name] for one, name in found.items() if prompts[name] or name == one},
        purpose,
        default_text=prompts[default] if default is not None and purpose is None else None,
    )
