"""What each input_type means to a card, whatever its prompts are called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.catalog.fingerprint import Prompted
from server.catalog.prompts import (
    MAX_PROMPTS,
    PURPOSES,
    PromptTable,
    comparable,
    fault_of_names,
    names_for,
    purpose_of,
)
from server.errors import InvalidRequest


def table(prompts: dict[str, str], default: str | None = None) -> PromptTable:
    return PromptTable("a-model", prompts, default, repr)


def refused(prompts: dict[str, str], input_type: str) -> str:
    with pytest.raises(InvalidRequest) as caught:
        table(prompts).text(input_type)
    assert caught.value.param == "input_type"
    return caught.value.message


NOMIC = {
    "search_query": "search_query: ",
    "search_document": "search_document: ",
    "classification": "classification: ",
    "clustering": "clustering: ",
}
JINA = {"retrieval.query": "rq: ", "retrieval.passage": "rp: ", "text-matching": "tm: "}
MOE = {"query": "q: ", "passage": "p: ", "STS": "s: ", "BitextMining": "b: ", "Speed": "v: "}

# By providers: sentence-transformers, Cohere, NVIDIA, Voyage, Jina, Gemini, mteb.
QUERIES = ["query", "search_query", "web_search_query", "s2p_query", "retrieval.query"]
QUERIES += ["RETRIEVAL_QUERY", "Retrieval-query", "Query", "SearchQuery", "retrieval query"]
DOCUMENTS = ["document", "passage", "corpus", "search_document", "retrieval.passage"]
DOCUMENTS += ["RETRIEVAL_DOCUMENT", "Retrieval-document", "PASSAGE"]
OTHERS = {
    "classification": ["classification", "CLASSIFICATION", "Classification"],
    "clustering": ["clustering", "CLUSTERING"],
    "similarity": ["STS", "sts", "text-matching", "SEMANTIC_SIMILARITY", "s2s_query"],
    "separation": ["separation"],
    "code.query": ["code.query", "CODE_RETRIEVAL_QUERY", "code_query"],
    "code.document": ["code.passage", "code.document"],
    "question_answering": ["QUESTION_ANSWERING"],
    "fact_verification": ["FACT_VERIFICATION", "FACT_CHECKING"],
    "bitext_mining": ["BitextMining"],
}


class TestTable:
    @pytest.mark.parametrize("name", QUERIES)
    def test_providers_names_for_queries_mean_one_purpose(self, name: str) -> None:
        assert purpose_of(name) == "query"

    @pytest.mark.parametrize("name", DOCUMENTS)
    def test_providers_names_for_documents_mean_one_purpose(self, name: str) -> None:
        assert purpose_of(name) == "document"

    @pytest.mark.parametrize(
        ("purpose", "name"), [(purpose, name) for purpose in OTHERS for name in OTHERS[purpose]]
    )
    def test_other_purposes_have_synonyms_too(self, purpose: str, name: str) -> None:
        assert purpose_of(name) == purpose

    @pytest.mark.parametrize("name", ["image", "querry", "", "_", "queries and more", "s2s"])
    def test_what_is_none_is_none(self, name: str) -> None:
        assert purpose_of(name) is None

    def test_no_name_means_two_purposes(self) -> None:
        names = [comparable(name) for names in PURPOSES.values() for name in names]
        assert len(names) == len(set(names))

    @pytest.mark.parametrize(
        ("purpose", "prompts", "order"),
        [
            ("query", {"web_search_query": "w", "query": "q"}, ["query", "web_search_query"]),
            ("query", {"s2p_query": "p", "search_query": "s"}, ["search_query", "s2p_query"]),
            ("query", {"Query": "q", "s2p_query": "p"}, ["s2p_query", "Query"]),
            ("query", {"query": "", "Query": "q"}, ["Query", "query"]),
            ("query", {"QUERY": "1", "Query": "2"}, ["QUERY", "Query"]),
            ("query", {"Query": "2", "QUERY": "1"}, ["QUERY", "Query"]),
            ("document", {"document": "", "passage": "p"}, ["passage", "document"]),
            ("document", {"corpus": "", "search_document": ""}, ["corpus", "search_document"]),
            ("similarity", {"STS": "s", "other": "o", "sts": "t"}, ["STS", "sts"]),
        ],
    )
    def test_which_of_several_is_meant_follows_an_order(
        self, purpose: str, prompts: dict[str, str], order: list[str]
    ) -> None:
        assert names_for(purpose, prompts) == order


class TestMeaning:
    @pytest.mark.parametrize(
        ("prompts", "input_type", "text"),
        [
            *((NOMIC, name, "search_query: ") for name in QUERIES),
            *((NOMIC, name, "search_document: ") for name in DOCUMENTS),
            *((JINA, name, "rq: ") for name in QUERIES),
            *((JINA, name, "rp: ") for name in DOCUMENTS),
            *((JINA, name, "tm: ") for name in OTHERS["similarity"]),
            *((MOE, name, "s: ") for name in OTHERS["similarity"]),
            (NOMIC, "CLUSTERING", "clustering: "),
            (MOE, "Speed", "v: "),
            (MOE, "speed", "v: "),
            (MOE, "bitext-mining", "b: "),
            (MOE, "passage", "p: "),
        ],
    )
    def test_a_name_or_a_synonym_means_that_prompt(
        self, prompts: dict[str, str], input_type: str, text: str
    ) -> None:
        assert table(prompts).text(input_type) == text

    @pytest.mark.parametrize("prompts", [{}, {"query": "q: "}, {"STS": "s: "}])
    def test_documents_without_a_prompt_are_bare(self, prompts: dict[str, str]) -> None:
        assert {table(prompts).text(name) for name in DOCUMENTS} == {""}

    @pytest.mark.parametrize("prompts", [{}, {"passage": "p: "}, {"STS": "s: "}])
    def test_queries_without_a_prompt_are_bare(self, prompts: dict[str, str]) -> None:
        assert {table(prompts).text(name) for name in QUERIES} == {""}

    @pytest.mark.parametrize("name", [name for names in OTHERS.values() for name in names])
    def test_without_any_prompt_every_purpose_is_bare(self, name: str) -> None:
        assert table({}).text(name) == ""

    def test_without_any_prompt_what_is_no_purpose_is_refused(self) -> None:
        message = refused({}, "image")
        assert message.startswith(
            "Invalid value for 'input_type': input_type must be one of 'query', 'document', "
            "'classification', 'clustering', 'similarity', "
        )
        assert message.endswith("for the model 'a-model', not 'image'.")

    def test_a_purpose_that_a_card_with_prompts_lacks_is_refused_and_its_own_listed(self) -> None:
        assert refused(NOMIC, "STS") == (
            "Invalid value for 'input_type': input_type must be one of 'query', 'document', "
            "'search_query', 'search_document', 'classification', 'clustering' for the model "
            "'a-model', not 'STS'."
        )

    @pytest.mark.parametrize("prompts", [{}, NOMIC])
    @pytest.mark.parametrize("wrong", ["", "_", "-", "querry", "q" * 10_000_000, "Q" * 101])
    def test_what_is_long_or_nothing_is_refused_shortly(
        self, prompts: dict[str, str], wrong: str
    ) -> None:
        assert len(refused(prompts, wrong)) < 600

    def test_a_name_of_the_cards_own_comes_before_a_synonym(self) -> None:
        both = {"query": "q: ", "web_search_query": "w: "}
        assert table(both).text("web_search_query") == "w: "
        assert table(both).text("Web-Search-Query") == "w: "
        assert table(both).text("search_query") == "q: "

    def test_of_two_names_that_are_alike_another_spelling_means_the_first(self) -> None:
        assert table({"STS": "", "sts": "t: "}).text("Sts") == "t: "

    def test_an_empty_prompt_is_known_and_means_the_bare_text(self) -> None:
        assert table({"query": "q: ", "STS": ""}).text("text-matching") == ""
        assert table({"document": "", "passage": "p: "}).text("document") == "p: "
        assert table({"document": "", "passage": "p: "}).text("Document") == "p: "

    @pytest.mark.parametrize(
        ("default", "text"), [(None, ""), ("clustering", "clustering: "), ("search_query", "s: ")]
    )
    def test_without_a_purpose_it_is_the_default(self, default: str | None, text: str) -> None:
        assert table(NOMIC | {"search_query": "s: "}, default).text(None) == text

    def test_an_explicit_document_without_a_prompt_is_bare_though_there_is_a_default(self) -> None:
        assert table({"query": "q: "}, "query").text("document") == ""
        assert table({"query": "q: "}, "query").text(None) == "q: "


NAMES = st.text(min_size=1, max_size=8).filter(lambda name: not fault_of_names([name]))
PROMPTS = st.dictionaries(
    st.sampled_from([name for names in PURPOSES.values() for name in names]) | NAMES,
    st.sampled_from(["", "a: ", "b: ", "c: "]),
    max_size=6,
)


@settings(max_examples=50)
@given(PROMPTS, st.data())
def test_whatever_the_names_each_means_what_it_says(
    prompts: dict[str, str], data: st.DataObject
) -> None:
    default = data.draw(st.sampled_from([None, *prompts]))
    asked = data.draw(st.text(max_size=8))
    made = table(prompts, default)
    turned = table(dict(reversed(prompts.items())), default)  # the order does not matter
    # Queries and documents are always accepted, and every prompt answers to its own name.
    for name in ("query", "document"):
        assert made.text(name) == (prompts.get(name) or made.text(name))
        assert made.text(name) in {"", *prompts.values()}
    for name, text in prompts.items():
        assert name in ("query", "document") or made.text(name) == text
    # Any other spelling means one of the card's prompts; what is neither a name nor a purpose, none.
    for name in [*PURPOSES, *(name.upper() for name in prompts), asked]:
        known = {*map(comparable, prompts), "query", "document"} - {""}
        if comparable(name) in known or (purpose_of(name) and not prompts):
            assert made.text(name) == turned.text(name)
            assert made.text(name) in {"", *prompts.values()}
        elif not purpose_of(name):
            with pytest.raises(InvalidRequest):
                made.text(name)
    # What another prompt decides has a fingerprint of its own.
    shared = {"", *(made.text(name) for name in (None, "query", "document"))}
    for input_type in (None, "query", "document", *prompts):
        text = made.text(input_type)
        own = repr(Prompted({}, None, prompt=text))
        assert made.fingerprint_for(input_type) == (made.fingerprint if text in shared else own)


class TestNames:
    @pytest.mark.parametrize(
        ("names", "fault"),
        [
            ([""], "'' is no name of a prompt"),
            ([" - "], "' - ' is no name of a prompt"),
            (["n" * 101], "the name 'nnnnnnnnnnnnnnnnnnnn'... has more than 100 characters"),
            (["a\nb"], r"the name 'a\nb' has characters that cannot be printed"),
            (["a\x00"], r"the name 'a\x00' has characters that cannot be printed"),
            (["\u202egeil"], r"the name '\u202egeil' has characters that cannot be printed"),
            ([str(n) for n in range(257)], "257 prompts, at most 256 can be served"),
        ],
    )
    def test_what_cannot_be_shown_to_people_is_no_name(self, names: list[str], fault: str) -> None:
        assert fault_of_names(names) == fault

    def test_publishers_names_are_names(self) -> None:
        assert (
            fault_of_names([*NOMIC, *JINA, *MOE, "日本語", "a name. of -words", "n" * 100]) is None
        )
        assert fault_of_names([str(n) for n in range(MAX_PROMPTS)]) is None
