from __future__ import annotations

import pytest

from server.errors import ImportRefused, ModelLoadError
from server.importing.refusing import refusing


def test_a_foreign_error_is_refused_in_one_line_with_what_failed() -> None:
    with pytest.raises(ImportRefused, match=r"^the graph: no such kernel$"), refusing("the graph"):
        raise RuntimeError("no such kernel\nand pages more")


def test_an_error_of_our_own_keeps_its_words() -> None:
    with pytest.raises(ModelLoadError, match=r"^as it was said$"), refusing("the graph"):
        raise ModelLoadError("as it was said")


def test_an_interruption_goes_through() -> None:
    with pytest.raises(KeyboardInterrupt), refusing("the graph"):
        raise KeyboardInterrupt
