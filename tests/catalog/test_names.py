from __future__ import annotations

import pytest

from server.catalog.names import is_card_name, stays_below


@pytest.mark.parametrize("name", ["tiny", "org/tiny", "a.b-c_d", "7b", "org/v1.5"])
def test_a_model_is_called_by_a_word_or_by_an_organisation_and_a_word(name: str) -> None:
    assert is_card_name(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "/a", "a/", ".a", "a/.b", "a b", "ümlaut", "a\n"])
def test_what_leads_elsewhere_or_needs_quoting_is_no_name(name: str) -> None:
    assert not is_card_name(name)


@pytest.mark.parametrize(
    ("path", "below"),
    [("a", True), ("a/b", True), ("a..b", True), ("../a", False), ("a/../b", False), ("/a", False)],
)
def test_a_path_stays_below_its_folder_or_does_not(path: str, below: bool) -> None:
    assert stays_below(path) is below
