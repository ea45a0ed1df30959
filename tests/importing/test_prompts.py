"""Which prompts an imported model gets, and that its output says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.catalog.card_file import read_card
from server.errors import ImportRefused, SettingError
from server.importing.families import Family
from server.importing.prompts import (
    PROMPTS_FILE,
    Prompts,
    choose_prompts,
    read_prompts,
    wished_prompts,
)
from tests.catalog import card_table, write_card

FAMILY = Family("known", "org/known", prompts={"query": "theirs: ", "document": "d: "})
CITED = "table of families, from org/known"
NONE = f"{PROMPTS_FILE} names none"
NO_DEFAULT = f"default prompt: none ({NONE})"


def read(place: Path, prompts: object, default: object = None) -> Prompts:
    said = {"prompts": prompts, "default_prompt_name": default}
    (place / PROMPTS_FILE).write_text(json.dumps(said))
    return read_prompts(place)


def ignore(line: str) -> None:
    pass


class TestReading:
    @pytest.mark.parametrize(
        ("prompts", "default", "expected"),
        [
            (None, None, Prompts({})),
            ({"query": "", "document": ""}, None, Prompts({})),  # as sentence-transformers 5 saves
            ({"query": "q: ", "document": ""}, "query", Prompts({"query": "q: "}, "query")),
            ({"STS": "s: ", "Speed": ""}, "Speed", Prompts({"STS": "s: ", "Speed": ""})),
            ({"a.b": "1", "A b": "2"}, "a.b", Prompts({"a.b": "1", "A b": "2"}, "a.b")),
            ({"document": "", "passage": "p: "}, None, Prompts({"passage": "p: "})),
            ({"query": "", "STS": "s: "}, "query", Prompts({"STS": "s: "})),
        ],
    )
    def test_all_prompts_are_kept_under_their_own_names(
        self, tmp_path: Path, prompts: object, default: str | None, expected: Prompts
    ) -> None:
        assert read(tmp_path, prompts, default) == expected

    def test_a_folder_without_the_file_has_none(self, tmp_path: Path) -> None:
        assert read_prompts(tmp_path) == Prompts({})

    @pytest.mark.parametrize(
        ("prompts", "default", "refusal"),
        [
            (["query"], None, "prompts must be texts by name"),
            ({"query": 1}, None, "prompts must be texts by name"),
            ({"": "q: "}, None, "prompts: '' is no name of a prompt"),
            ({"a\nb": "q: "}, None, r"prompts: the name 'a\nb' has characters that cannot be"),
            ({"n" * 101: "q: "}, None, "has more than 100 characters"),
            ({str(n): "" for n in range(257)}, None, "257 prompts, at most 256 can be served"),
            ({"query": "q: "}, ["query"], "default_prompt_name must be a text"),
            ({"query": "q: "}, "Query", "default_prompt_name 'Query' is not among the prompts"),
        ],
    )
    def test_what_are_no_prompts_is_refused_by_the_file(
        self, tmp_path: Path, prompts: object, default: object, refusal: str
    ) -> None:
        with pytest.raises(ImportRefused) as caught:
            read(tmp_path, prompts, default)
        assert caught.value.message.startswith(f"{tmp_path / PROMPTS_FILE}: ")
        assert refusal in caught.value.message
        assert "\n" not in caught.value.message


class TestChoosing:
    @pytest.mark.parametrize(
        ("own", "family", "wished", "chosen", "told"),
        [
            ({}, None, {}, {}, [f"prompts: none ({NONE})", NO_DEFAULT]),
            (
                {"query": "own: "},
                FAMILY,
                {},
                {"query": "own: "},
                [
                    f'prompt query: "own: " ({PROMPTS_FILE})',
                    "prompt document: none, the bare text (no prompt is named for it)",
                    NO_DEFAULT,
                ],
            ),
            (
                {},
                FAMILY,
                {},
                dict(FAMILY.prompts),
                [
                    f'prompt query: "theirs: " ({CITED})',
                    f'prompt document: "d: " ({CITED})',
                    NO_DEFAULT,
                ],
            ),
            (
                {"search_query": "sq: ", "passage": "two\nlines", "clustering": "c: ", "Speed": ""},
                None,
                {},
                {"search_query": "sq: ", "passage": "two\nlines", "clustering": "c: ", "Speed": ""},
                [
                    f'prompt query: "sq: " ({PROMPTS_FILE}, search_query)',
                    f'prompt document: "two\\nlines" ({PROMPTS_FILE}, passage)',
                    f"other prompts: clustering, Speed ({PROMPTS_FILE})",
                    NO_DEFAULT,
                ],
            ),
            (
                {"STS": "s: "},
                FAMILY,
                {},
                {"STS": "s: ", **FAMILY.prompts},
                [
                    f'prompt query: "theirs: " ({CITED})',
                    f'prompt document: "d: " ({CITED})',
                    f"other prompts: STS ({PROMPTS_FILE})",
                    NO_DEFAULT,
                ],
            ),
            (
                {"search_query": "own: ", "web_search_query": "web: ", "STS": "s: "},
                None,
                {"query": "mine: ", "code": "c: "},
                {"STS": "s: ", "query": "mine: ", "code": "c: "},
                [
                    'prompt query: "mine: " (--query-prompt)',
                    "prompt document: none, the bare text (no prompt is named for it)",
                    f"other prompts: STS, code ({PROMPTS_FILE}, --prompt)",
                    NO_DEFAULT,
                ],
            ),
            (
                {"query": "own: ", "s2p_query": "p: "},
                None,
                {"query": ""},
                {},
                [
                    "prompt query: none, the bare text (--query-prompt)",
                    "prompt document: none, the bare text (no prompt is named for it)",
                    NO_DEFAULT,
                ],
            ),
        ],
    )
    def test_the_persons_come_before_the_folders_before_the_published(
        self,
        own: dict[str, str],
        family: Family | None,
        wished: dict[str, str],
        chosen: dict[str, str],
        told: list[str],
    ) -> None:
        lines: list[str] = []
        assert choose_prompts(Prompts(own), family, wished, lines.append) == Prompts(chosen)
        assert lines == told

    @pytest.mark.parametrize(
        ("own", "warning"),
        [
            (
                {"query": "q: ", "web_search_query": "w: ", "s2p_query": "q: "},
                (
                    "warning: prompt query: input_type query takes the prompt query; only under "
                    "their own names, since their texts differ: web_search_query"
                ),
            ),
            (
                {"STS": "s: ", "text-matching": "m: ", "s2s_query": "n: "},
                (
                    "warning: other prompts: input_type similarity takes the prompt STS; only under "
                    "their own names, since their texts differ: text-matching, s2s_query"
                ),
            ),
        ],
    )
    def test_what_could_mean_another_prompt_is_told(
        self, own: dict[str, str], warning: str
    ) -> None:
        lines: list[str] = []
        choose_prompts(Prompts(own), None, {}, lines.append)
        assert [line for line in lines if line.startswith("warning")] == [warning]

    @pytest.mark.parametrize(
        ("own", "wished", "default"),
        [
            (Prompts({"clustering": "c: "}, "clustering"), {}, "clustering"),
            (Prompts({"search_query": "s: "}, "search_query"), {"query": "mine: "}, "query"),
            (Prompts({"search_query": "s: "}, "search_query"), {"query": ""}, None),
            (Prompts({"query": "q: "}, "query"), {"document": "d: "}, "query"),
        ],
    )
    def test_the_default_prompt_is_any_of_them_and_told(
        self, own: Prompts, wished: dict[str, str], default: str | None
    ) -> None:
        lines: list[str] = []
        assert choose_prompts(own, None, wished, lines.append).default == default
        assert lines[-1] == f"default prompt: {default or 'none'} ({PROMPTS_FILE})"

    def test_too_many_are_refused(self) -> None:
        own = Prompts({str(n): "" for n in range(256)})
        with pytest.raises(ImportRefused, match="257 prompts, at most 256"):
            choose_prompts(own, None, {"more": "m: "}, ignore)

    @settings(max_examples=50)
    @given(
        st.dictionaries(
            st.sampled_from(["query", "search_query", "passage", "document", "STS", "x"]),
            st.sampled_from(["", "a: ", "b: "]),
        ),
        st.sampled_from([None, FAMILY]),
        st.dictionaries(
            st.sampled_from(["query", "document", "STS"]), st.sampled_from(["", "m: "])
        ),
    )
    def test_what_a_person_says_is_what_it_means(
        self, own: dict[str, str], family: Family | None, wished: dict[str, str]
    ) -> None:
        found = choose_prompts(Prompts(own), family, wished, ignore)
        for name, text in wished.items():
            assert found.text_for(name if name != "STS" else "similarity") == text
        assert set(own) - {"query", "document"} <= {*found.by_name, "search_query", "passage"}


# Fingerprints of cards that were imported from these folders when all but the prompts for queries and
# documents were dropped, by the software of that time.
OF_EARLIER_IMPORTS: list[tuple[dict[str, str], str | None, Family | None, str]] = [
    ({"query": "", "document": ""}, None, None, "6ebcf8bef865409b"),
    (
        {"search_query": "sq: ", "search_document": "sd: ", "classification": "cl: "},
        None,
        None,
        "11914890acf7a4e1",
    ),
    (
        {"query": "q: ", "document": "", "passage": "p: ", "Clustering": "c: "},
        None,
        None,
        "acc15e1bfd7b896a",
    ),
    (
        {"web_search_query": "w: ", "sts_query": "s: ", "search_query": "sq: "},
        "search_query",
        None,
        "f89f1741991d0455",
    ),
    ({"web_search_query": "w: ", "query": "q: "}, "query", None, "c7adb9f86e2e66bb"),
    ({"query": "x: ", "document": "x: "}, "document", None, "f4fdd8c83e95c644"),
    (
        {"query": "q: ", "passage": "x: ", "corpus": "y: ", "again": "x: "},
        "again",
        None,
        "7b14cae0c69ce342",
    ),
    ({"query": "q: ", "STS": ""}, "STS", None, "76dc92ea131fa83e"),
    ({"clustering": "c: "}, None, FAMILY, "3511d0a7fef643ff"),
    ({"query": "q: ", "clustering": "c: "}, None, FAMILY, "76dc92ea131fa83e"),
    ({"s2p_query": "p: ", "s2s_query": "s: "}, None, None, "da862afcc9b7ba17"),
    ({"search_query": "sq: ", "Query": "other: "}, None, None, "f2a373979b1fb0d7"),
]


@pytest.mark.parametrize(("prompts", "default", "family", "fingerprint"), OF_EARLIER_IMPORTS)
def test_a_folder_that_is_imported_again_keeps_its_fingerprint(
    tmp_path: Path,
    prompts: dict[str, str],
    default: str | None,
    family: Family | None,
    fingerprint: str,
) -> None:
    chosen = choose_prompts(read(tmp_path, prompts, default), family, {}, ignore)
    facts: dict[str, Any] = {"prompts": chosen.by_name}
    facts |= {"default_prompt": chosen.default} if chosen.default else {}
    card = read_card(write_card(tmp_path, card_table(**facts)), tmp_path)
    assert card.fingerprint == fingerprint
    shared = {card.prompt_table.fingerprint_for(name) for name in (None, "query", "document")}
    assert shared == {fingerprint}


class TestFlags:
    def test_they_are_texts_by_name(self) -> None:
        assert wished_prompts(["a=b=c", "STS="], "q: ", None) == {
            "query": "q: ",
            "a": "b=c",
            "STS": "",
        }
        assert wished_prompts(["query=mine: "], None, None) == {"query": "mine: "}

    @pytest.mark.parametrize(
        ("named", "refusal"),
        [
            ("STS", "--prompt: 'STS' is not NAME=TEXT"),
            ("=text", "--prompt: '' is no name of a prompt"),
            ("query=other", "--prompt: 'query' is said twice"),
            ("STS=\udcff", "--prompt: the text of 'STS' is not UTF-8"),
            ("\udcff=text", "--prompt: the name '\\udcff' has characters that cannot be printed"),
        ],
    )
    def test_what_is_none_is_refused(self, named: str, refusal: str) -> None:
        with pytest.raises(SettingError) as caught:
            wished_prompts([named], "q: ", None)
        assert caught.value.message == refusal
