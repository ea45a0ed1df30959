"""docs/how-to/import-checks.md says what an import prints of each folder, word for word."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from server.errors import ImportRefused
from server.importing import torch_export
from server.importing.folder import ModelFolder
from server.importing.importer import import_model
from server.importing.stored_tensors import read_stored_tensors
from server.importing.witness.witness import FAMILIES
from server.program.command_lines import own_command
from tests.conftest import REPOSITORY
from tests.importing.checked_folders import CHECKED, Checked
from tests.importing.folders import make_folder

PAGE = REPOSITORY / "docs" / "how-to" / "import-checks.md"
EXPORTED = "as far as an export"  # what an import comes to if nothing refuses the folder
# The page's other rows: what is said of them is known when there is a graph, and is tested there.
ELSEWHERE = {
    "code, and a graph of the publisher's": (
        "importing/test_importer.py::"
        "test_a_publishers_graph_does_for_own_code_which_nothing_here_could_compare_with"
    ),
    "no `Normalize` in `modules.json`": (
        "commands/test_models.py::test_every_flag_reaches_the_card"
    ),
    "more tokens than the weights have vectors": (
        "importing/test_importer.py::"
        "test_tokens_that_the_weights_lack_are_named_and_the_import_goes_on"
    ),
    "the padding token is one of those": (
        "importing/test_special_tokens.py::"
        "test_a_padding_token_that_the_table_lacks_refuses_the_import"
    ),
    "a dynamically quantised graph": (
        "importing/test_company.py::"
        "test_a_graph_that_gives_a_text_other_vectors_among_others_is_refused_by_force_too"
    ),
    "a graph that reads its padding": (
        "importing/test_company.py::"
        "test_a_graph_that_gives_a_text_other_vectors_among_others_is_refused_by_force_too"
    ),
    "a graph of other weights": (
        "importing/test_importer.py::test_a_publishers_graph_of_other_weights_is_refused"
    ),
    "the same, without torch": (
        "importing/test_witness_proof.py::test_a_publishers_graph_of_other_weights_is_refused"
    ),
    "a graph without weights": (
        "importing/test_company.py::"
        "test_a_graph_that_was_compared_with_nothing_is_imported_and_that_is_said"
    ),
    "the vectors that the weights give": (
        "importing/test_witness_proof.py::test_a_sound_model_is_told_with_its_texts_and_figures"
    ),
    "other vectors than the graph's": (
        "importing/test_witness_proof.py::"
        "test_weights_that_are_not_the_graphs_are_refused_and_force_keeps_them"
    ),
    "a tensor that is not there": (
        "importing/test_witness_proof.py::test_force_does_not_get_past_a_missing_tensor"
    ),
    "a setting that it has no formula for": (
        "importing/test_witness_proof.py::"
        "test_a_setting_without_a_formula_is_refused_and_force_keeps_it"
    ),
    "a family that it does not know": (
        "importing/test_witness_proof.py::test_what_has_no_witness_is_told"
    ),
}
_ROW = re.compile(
    r"^\| (?P<folder>.+?) \| (?P<outcome>refused|imported|imported, with a warning) \| "
    r"(?P<ticks>`+) ?(?P<line>.*?) ?(?P=ticks) \|$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Row:
    """What the page says of a folder."""

    outcome: str
    line: str


ROWS = {row["folder"]: Row(row["outcome"], row["line"]) for row in _ROW.finditer(PAGE.read_text())}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model of an architecture that nothing is wrong with, made once."""
    place = tmp_path_factory.mktemp("sound")
    prompts = {"query": "query: ", "document": "passage: "}

    def make(architecture: str) -> Path:
        folder = place / architecture
        return folder if folder.exists() else make_folder(folder, architecture, prompts=prompts)

    return make


@pytest.mark.parametrize("folder", CHECKED)
def test_what_the_page_says_of_a_folder_is_what_an_import_prints(
    folder: str,
    sound: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked, said = CHECKED[folder], ROWS[folder]
    lines = printed(checked, tmp_path, sound(checked.architecture), monkeypatch)
    if said.outcome == "refused":
        assert lines[-1] == said.line
    else:
        assert lines[-1] == EXPORTED
        assert said.line in lines
        assert said.line.startswith("warning: ") == (said.outcome == "imported, with a warning")


def test_each_row_of_the_page_has_a_test() -> None:
    assert set(ROWS) == set(CHECKED) | set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(), place


def test_each_family_with_a_witness_has_its_figure_on_the_page() -> None:
    figures = re.findall(r"^\| `([a-z0-9_-]+)`.* \| (\S+e-0\d) \|$", PAGE.read_text(), re.MULTILINE)
    assert {name for name, _ in figures} == set(FAMILIES)
    assert all(float(figure) <= 1e-5 for _, figure in figures)


def printed(checked: Checked, place: Path, sound: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """The lines of an import, without the export; the last one is the refusal or EXPORTED."""

    def stop(folder: ModelFolder) -> None:
        read_stored_tensors(folder.path, folder.weights)  # with what an export begins
        raise ImportRefused(EXPORTED)

    patch.setattr(torch_export, "export_graph", stop)
    path, wishes = checked.make(place, sound), checked.wishes
    if wishes.base is not None:
        wishes = replace(wishes, base=sound)
    lines: list[str] = []
    try:
        import_model(path, place / "installed", wishes, lines.append)
    except ImportRefused as refused:
        lines.append(refused.message)
    return [_on_the_page(line, path, place) for line in lines]


def _on_the_page(line: str, path: Path, place: Path) -> str:
    """A line without what differs from machine to machine."""
    if path.is_absolute():
        line = line.replace(str(path), "FOLDER").replace(str(path.parent), "PARENT")
    return line.replace(str(place), "PARENT").replace(own_command(), "embedding-server")
