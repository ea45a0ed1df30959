"""The documents' language and links, as CONTRIBUTING.md wants them."""

from __future__ import annotations

import re

import pytest

from tests.pages import (
    LIST_ITEM,
    PAGES,
    README,
    REPOSITORY,
    anchors_of,
    lines_of_prose,
    sentences_of,
)

MAX_COLUMNS = 120
MAX_WORDS = 25
MAX_README_LINES = 120
CHANGELOG = "CHANGELOG.md"
TEXTS = {**PAGES, CHANGELOG: (REPOSITORY / CHANGELOG).read_text(encoding="utf-8")}
# Subjects that hide what a sentence is about, and expressions that nobody says.
DENSE = re.compile(r"^(What|Who|Whoever|That which)\b.*[^?]$|\b(tell of|lets go|gone on with)\b")


def without_targets(line: str) -> str:
    return re.sub(r"\]\([^)]*\)", "]", line)


@pytest.mark.parametrize("name", TEXTS)
def test_no_line_of_prose_is_too_wide_to_read(name: str) -> None:
    lines = map(without_targets, lines_of_prose(TEXTS[name]))
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


def test_the_readme_is_short() -> None:
    assert len(PAGES[README].splitlines()) <= MAX_README_LINES


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_is_longer_than_a_reader_holds_it(name: str) -> None:
    sentences = list(sentences_of(PAGES[name]))
    assert sentences
    assert [one for one in sentences if len(re.findall(r"\S*\w\S*", one)) > MAX_WORDS] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_line_of_the_source_holds_one_sentence(name: str) -> None:
    """So that a change of a sentence is a change of a line."""
    second = re.compile(r"[a-z)`0-9][.!?] +[A-Z`\[]")
    lines = (LIST_ITEM.sub("", line, count=1) for line in lines_of_prose(PAGES[name]))
    assert [line for line in lines if second.search(line)] == []


@pytest.mark.parametrize("name", PAGES)
def test_a_sentence_begins_with_its_subject(name: str) -> None:
    assert [one for one in sentences_of(PAGES[name]) if DENSE.search(one)] == []


@pytest.mark.parametrize("name", TEXTS)
def test_each_link_leads_to_a_file_and_to_a_heading_in_it(name: str) -> None:
    here = REPOSITORY / name
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (here.parent / path).resolve() if path else here
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), link


def test_the_checks_see_what_they_look_for() -> None:
    page = (
        "# A *heading*, `code`\n\nOne `long code here` [two three](link.md). Four.\n"
        "- What is it?\n- What it is.\n\n| table | x |\n\n```sh\ncode. Code.\n```\n"
    )
    assert list(sentences_of(page)) == [
        "One CODE two three.",
        "Four.",
        "What is it?",
        "What it is.",
    ]
    assert [one for one in sentences_of(page) if DENSE.search(one)] == ["What it is."]
    assert anchors_of(page) == {"a-heading-code"}
