"""The documents, for tests: their text, blocks of code, prose and headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
README, CONTRIBUTING = "README.md", "CONTRIBUTING.md"

# By the path from the repository's root.
PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        REPOSITORY / README,
        REPOSITORY / CONTRIBUTING,
        *sorted((REPOSITORY / "docs").rglob("*.md")),
    ]
}

_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_GENERATED = re.compile(r"<!-- generated: .*?<!-- /generated -->", re.DOTALL)
_NO_PROSE = re.compile(r"\||#|<!--|!\[|> |\[\w+\]: ")  # how such a line begins
LIST_ITEM = re.compile(r" *(?:[-*]|\d+\.) ")


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Language and content of a page's blocks of code, in their order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def lines_of_prose(page: str) -> Iterator[str]:
    """The lines that people wrote to be read: no code, tables, headings, pictures, quotations.

    An empty line stands for whatever was left out.
    """
    for line in _FENCED.sub("", _GENERATED.sub("", page)).splitlines():
        yield "" if _NO_PROSE.match(line) else line


def sentences_of(page: str) -> Iterator[str]:
    """The sentences of a page's prose; code counts as one word, and links as their text."""
    paragraph = ""
    for line in [*lines_of_prose(page), ""]:
        if not line or LIST_ITEM.match(line):
            yield from _sentences(paragraph)
            paragraph = ""
        paragraph += f" {LIST_ITEM.sub('', line, count=1)}"


def _sentences(paragraph: str) -> Iterator[str]:
    plain = re.sub(r"`[^`]+`", "CODE", paragraph)
    plain = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", plain).replace("*", "")
    yield from filter(None, re.split(r"(?<=[.!?])\s+(?=[A-Z\"(])", plain.strip()))


def anchors_of(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
