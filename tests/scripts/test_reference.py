"""The tables of docs/reference are what the code declares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import reference
from server.settings import Settings


@pytest.mark.parametrize("page", sorted(reference.PAGES.glob("*.md")), ids=lambda page: page.name)
def test_a_page_tells_what_the_code_declares(page: Path) -> None:
    """`make reference` writes it anew."""
    text = page.read_text(encoding="utf-8")
    assert reference.with_tables(text) == text


def test_every_table_is_on_one_page() -> None:
    pages = "".join(page.read_text("utf-8") for page in reference.PAGES.glob("*.md"))
    assert sorted(re.findall(r"<!-- generated: (\S+) -->", pages)) == sorted(reference.SECTIONS)


def test_a_stale_table_is_written_anew_and_the_rest_stays() -> None:
    page = "before\n<!-- generated: routes -->\n| old |\n<!-- /generated -->\nafter\n"
    expected = reference.SECTIONS["routes"]()
    assert reference.with_tables(page) == page.replace("| old |", expected)


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        reference.with_tables("<!-- generated: nothing -->\n<!-- /generated -->")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string", "minLength": 1, "maxLength": 8}, "string (≥ 1, ≤ 8)"),
        ({"type": "number", "exclusiveMinimum": 0}, "number (> 0)"),
        ({"enum": ["a", "b"], "type": "string"}, "`a` or `b`"),
        ({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]}, "integer (≥ 0)"),
        (
            {"type": "array", "items": {"type": "string"}, "maxItems": 2048},
            "array (≤ 2,048) of string",
        ),
    ],
)
def test_a_schema_is_told_with_its_bounds(schema: reference.Schema, words: str) -> None:
    assert reference.spelled(schema) == words


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert reference.table(["a"], [["x|y"]]).splitlines()[-1] == r"| x\|y |"


def test_no_secret_setting_shows_stars_for_a_default() -> None:
    assert "***" not in reference.settings_table()
    assert all(f"| `{name}` |" in reference.settings_table() for name in Settings.model_fields)
