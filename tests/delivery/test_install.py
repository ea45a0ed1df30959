from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.catalog.registry import read_registry
from server.delivery import placing
from server.delivery.bundle_reader import BundleReader
from server.delivery.bundle_writer import Contents
from server.delivery.exchange import exchange
from server.delivery.install import install
from server.errors import BundleError
from tests.catalog import (
    FILES,
    bundle_bytes,
    card_table,
    pins,
    variant_table,
    write_card,
    write_model,
)

ROTATION = {"rotation.safetensors": b"a rotation"}
NEW = {name: content.upper() for name, content in FILES.items()}

# Dies as if killed, at the n-th change of a name in the file system.
KILLED = """
import os, sys
from pathlib import Path
from server.delivery import placing
from server.delivery import install
from server.delivery.bundle_reader import BundleReader

bundle, models_dir, installed, at, swaps = sys.argv[1:]
left = int(at)

def counted(change):
    def change_or_die(*arguments):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return change(*arguments)
    return change_or_die

Path.rename = counted(Path.rename)
placing.exchange = counted(placing.exchange) if swaps == "swaps" else lambda one, other: False
with open(bundle, "rb") as file:
    install.install(BundleReader(file, Path(bundle)), Path(models_dir), Path(installed), replace=True)
"""


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    folder = tmp_path / "shipped"
    folder.mkdir()
    return folder


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "models"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model and its variant."""
    return bundle_of(tmp_path, FILES, ROTATION)


def bundle_of(tmp_path: Path, files: Mapping[str, bytes], rotation: Mapping[str, bytes]) -> Path:
    models_dir = tmp_path / f"source-{len(list(tmp_path.iterdir()))}"
    write_model(models_dir, card_table(files=pins(files)), files)
    folder = write_model(models_dir, variant_table(files=pins(rotation)), rotation)
    path = models_dir.with_suffix(".bundle")
    card = read_card(folder, models_dir)
    Contents([card], []).write(path, force=False, report=lambda _: None)
    return path


def by_hand(tmp_path: Path, files: Mapping[str, bytes]) -> Path:
    path = tmp_path / "by-hand.bundle"
    path.write_bytes(bundle_bytes(files))
    return path


def card_bytes(tmp_path: Path, table: Mapping[str, object]) -> bytes:
    return (write_card(tmp_path / "scratch", table, "here") / "card.toml").read_bytes()


def installing(
    bundle: Path,
    shipped: Path,
    installed: Path,
    *,
    approved: str | None = None,
    replace: bool = False,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, str]:
    with bundle.open("rb") as file:
        reader = BundleReader(file, bundle, report)
        return install(reader, shipped, installed, approved_sha256=approved, replace=replace)


def refused(bundle: Path, shipped: Path, installed: Path, *, replace: bool = False) -> str:
    """The reason; what is installed must be as it was."""
    before = contents(installed)
    with pytest.raises(BundleError) as caught:
        installing(bundle, shipped, installed, replace=replace)
    assert contents(installed) == before
    assert caught.value.message.isprintable()
    return caught.value.message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but cards; what begins with a dot counts too."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "card.toml"
    }


def below(name: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{name}/{file}": content for file, content in files.items()}


BOTH = {**below("tiny", FILES), **below("variant", ROTATION)}


class TestInstalling:
    def test_the_models_of_a_bundle_are_there_and_found(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        fates = installing(bundle, shipped, installed)
        assert fates == {"tiny": "installed", "variant": "installed"}
        assert contents(installed) == BOTH
        assert sorted(path.name for path in installed.iterdir()) == ["tiny", "variant"]
        registry = read_registry(shipped, installed)
        assert {card.name for card in registry.cards} == {"tiny", "variant"}
        assert registry.resolve("variant").encoder_card.folder == installed / "tiny"

    def test_nothing_can_be_seen_before_everything_is_compared(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        seen: list[tuple[Card, ...]] = []
        installing(
            bundle,
            shipped,
            installed,
            report=lambda _: seen.append(read_registry(shipped, installed).cards),
        )
        assert len(seen) > 10
        assert set(seen) == {()}

    def test_the_same_bundle_again_leaves_the_files_alone(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        installing(bundle, shipped, installed)
        before = {path: path.stat() for path in installed.rglob("*")}
        fates = installing(bundle, shipped, installed)
        assert set(fates.values()) == {"already installed"}
        assert {path: path.stat().st_ino for path in installed.rglob("*")} == {
            path: status.st_ino for path, status in before.items()
        }

    def test_the_missing_one_of_two_is_added(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        write_model(installed, card_table())
        fates = installing(bundle, shipped, installed)
        assert fates == {"tiny": "already installed", "variant": "installed"}
        assert contents(installed) == BOTH

    def test_a_model_of_an_organisation_goes_into_its_folder(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        card = read_card(write_model(tmp_path, card_table("org/tiny")), tmp_path)
        Contents([card], []).write(tmp_path / "b", force=False, report=lambda _: None)
        assert installing(tmp_path / "b", shipped, installed) == {"org/tiny": "installed"}
        assert contents(installed) == below("org/tiny", FILES)

    def test_a_base_may_have_come_with_the_software(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        card = card_bytes(tmp_path, variant_table(files=pins(ROTATION)))
        files = {"models/variant/card.toml": card}
        alone = by_hand(tmp_path, files | below("models/variant", ROTATION))
        assert "base tiny is not in" in refused(alone, shipped, installed)
        write_model(shipped, card_table())
        assert installing(alone, shipped, installed) == {"variant": "installed"}

    def test_files_are_readable_as_the_user_makes_files(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        mask = os.umask(0o027)
        try:
            installing(bundle, shipped, installed)
        finally:
            os.umask(mask)
        assert (installed / "tiny").stat().st_mode & 0o777 == 0o750
        assert (installed / "tiny" / "card.toml").stat().st_mode & 0o777 == 0o640


class TestOtherContent:
    def test_it_is_left_alone_unless_it_is_to_be_replaced(
        self, tmp_path: Path, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        installing(bundle, shipped, installed)
        newer = bundle_of(tmp_path, NEW, ROTATION)
        message = refused(newer, shipped, installed)
        assert "model tiny is installed with other content (card.toml, graph.onnx" in message
        fates = installing(newer, shipped, installed, replace=True)
        assert fates == {"tiny": "replaced", "variant": "already installed"}
        assert contents(installed) == {**below("tiny", NEW), **below("variant", ROTATION)}

    def test_a_damaged_model_is_mended_by_replacing(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        installing(bundle, shipped, installed)
        (installed / "tiny" / "graph.onnx").write_bytes(b"A graph")
        assert "(graph.onnx in " in refused(bundle, shipped, installed)
        assert installing(bundle, shipped, installed, replace=True)["tiny"] == "replaced"
        assert contents(installed) == BOTH

    def test_it_is_replaced_also_where_folders_cannot_be_exchanged(
        self,
        tmp_path: Path,
        bundle: Path,
        shipped: Path,
        installed: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        installing(bundle, shipped, installed)
        monkeypatch.setattr(placing, "exchange", lambda one, other: False)
        installing(bundle_of(tmp_path, NEW, ROTATION), shipped, installed, replace=True)
        assert contents(installed) == {**below("tiny", NEW), **below("variant", ROTATION)}

    @pytest.mark.parametrize("replace", [False, True])
    def test_a_folder_that_is_no_model_is_never_replaced(
        self, bundle: Path, shipped: Path, installed: Path, replace: bool
    ) -> None:
        (installed / "tiny").mkdir()
        (installed / "tiny" / "letters").write_bytes(b"precious")
        message = refused(bundle, shipped, installed, replace=replace)
        assert f"{installed / 'tiny'} is in the way" in message

    def test_a_folder_with_other_models_in_it_is_never_replaced(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        write_model(installed, card_table("tiny/other"))
        assert "is in the way" in refused(bundle, shipped, installed, replace=True)
        write_card(installed, card_table("else"), "tiny")
        assert "is in the way" in refused(bundle, shipped, installed, replace=True)

    def test_the_same_name_in_another_folder_is_refused(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        write_model(installed, card_table()).rename(installed / "renamed")
        message = refused(bundle, shipped, installed, replace=True)
        assert f"model tiny is in a folder of another name, {installed / 'renamed'}" in message


class TestKilled:
    """Whenever the process dies, each model is the old one or the new one."""

    @pytest.mark.parametrize(("swaps", "changes"), [("swaps", 2), ("cannot swap", 4)])
    @pytest.mark.slow
    def test_a_death_between_two_renames_leaves_models_that_the_next_installation_completes(
        self, tmp_path: Path, bundle: Path, shipped: Path, installed: Path, swaps: str, changes: int
    ) -> None:
        new = {**below("tiny", NEW), **below("variant", {"rotation.safetensors": b"A ROTATION"})}
        newer = bundle_of(tmp_path, NEW, {"rotation.safetensors": b"A ROTATION"})
        codes = []
        for at in range(changes + 1):
            installing(bundle, shipped, installed, replace=True)
            arguments = map(str, (newer, shipped, installed, at, swaps))
            outcome = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
            codes.append(outcome.returncode)
            if swaps == "swaps":
                found = contents(installed)
                for name in ("tiny", "variant"):
                    one = {k: v for k, v in found.items() if k.startswith(f"{name}/")}
                    assert one in [
                        {k: v for k, v in models.items() if k.startswith(f"{name}/")}
                        for models in (BOTH, new)
                    ]
            installing(newer, shipped, installed, replace=True)
            assert contents(installed) == new
        assert codes == [9] * changes + [0]

    def test_a_base_is_there_before_its_variant_whatever_their_names(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        source = tmp_path / "source"
        write_model(source, card_table())
        folder = write_model(source, variant_table("a-variant", files=pins(ROTATION)), ROTATION)
        path = tmp_path / "b"
        Contents([read_card(folder, source)], []).write(path, force=False, report=lambda _: None)
        arguments = map(str, (path, shipped, installed, 1, "swaps"))
        subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
        found = [card.name for card in read_registry(shipped, installed).cards]
        assert found == ["tiny"]  # a variant alone could not be read

    def test_a_model_that_was_taken_away_and_not_replaced_comes_back(
        self, tmp_path: Path, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        installing(bundle, shipped, installed)
        newer = bundle_of(tmp_path, NEW, ROTATION)
        arguments = map(str, (newer, shipped, installed, 1, "cannot swap"))
        subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
        assert not (installed / "tiny").exists()
        # Even an installation that is itself refused puts it back.
        damaged = tmp_path / "damaged"
        damaged.write_bytes(newer.read_bytes().replace(b"A GRAPH", b"a GRAPH"))
        with pytest.raises(BundleError):
            installing(damaged, shipped, installed, replace=True)
        assert contents(installed) == BOTH

    @pytest.mark.parametrize(
        ("swaps", "at"), [(True, 0), (True, 1), *((False, at) for at in range(4))]
    )
    def test_an_error_between_two_renames_undoes_them(
        self,
        tmp_path: Path,
        bundle: Path,
        shipped: Path,
        installed: Path,
        monkeypatch: pytest.MonkeyPatch,
        at: int,
        swaps: bool,
    ) -> None:
        installing(bundle, shipped, installed)
        newer = bundle_of(tmp_path, NEW, {"rotation.safetensors": b"A ROTATION"})
        left = [at]

        def fail_once(*_: object) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(5, "Input/output error")

        rename = Path.rename

        def renamed(path: Path, target: Path) -> Path:
            fail_once()
            return rename(path, target)

        def exchanged(one: Path, other: Path) -> bool:
            if swaps:
                fail_once()
            return swaps and exchange(one, other)

        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(placing, "exchange", exchanged)
        assert "Input/output error" in refused(newer, shipped, installed, replace=True)
        assert left[0] < 0

    def test_what_a_killed_one_has_left_is_removed_by_the_next(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        left = installed / ".new-0123abcd" / "new" / "tiny"
        left.mkdir(parents=True)
        (left.parent.parent / ".lock").touch()
        (left / "card.toml").write_bytes(b"half a card")
        assert read_registry(shipped, installed).cards == ()
        installing(bundle, shipped, installed)
        assert contents(installed) == BOTH
        assert list(installed.glob(".*")) == []

    def test_two_at_a_time_are_refused(self, bundle: Path, shipped: Path, installed: Path) -> None:
        opened = os.open(installed, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX)
            message = refused(bundle, shipped, installed)
        finally:
            os.close(opened)
        assert f"another bundle is being installed into {installed}" in message
        installing(bundle, shipped, installed)


class TestRefusals:
    @pytest.mark.parametrize("replace", [False, True])
    def test_a_damaged_bundle_installs_nothing(
        self, bundle: Path, shipped: Path, installed: Path, replace: bool
    ) -> None:
        content = bundle.read_bytes()
        bundle.write_bytes(content.replace(b"a rotation", b"A rotation"))  # the last file
        message = refused(bundle, shipped, installed, replace=replace)
        assert "models/variant/rotation.safetensors has sha256" in message
        assert contents(installed) == {}

    def test_another_digest_than_the_approved_one_installs_nothing(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
        with pytest.raises(BundleError, match=f"has sha256 {digest}, not the approved 0000"):
            installing(bundle, shipped, installed, approved="0" * 64)
        assert list(installed.iterdir()) == []
        installing(bundle, shipped, installed, approved=digest.upper())
        assert contents(installed) == BOTH

    def test_a_card_that_wants_other_bytes_than_the_list_is_refused(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        card = card_bytes(tmp_path, card_table())
        right = {"models/tiny/card.toml": card, **below("models/tiny", FILES)}
        changed = right | {"models/tiny/graph.onnx": b"A graph"}
        missing = {path: content for path, content in right.items() if "graph" not in path}
        added = right | {"models/tiny/sitecustomize.py": b"evil"}
        for files, named in [
            (changed, "graph.onnx"),
            (missing, "graph.onnx"),
            (added, "sitecustomize.py"),
        ]:
            message = refused(by_hand(tmp_path, files), shipped, installed)
            assert message.endswith(f"do not agree about {named}")
        installing(by_hand(tmp_path, right), shipped, installed)

    @pytest.mark.parametrize(
        "card", [b"", b"\xff", b"name = 1", b'name = "tiny"\n"\\u001b[2J" = 1', b'base = "../x"']
    )
    def test_what_is_no_card_is_refused_without_the_temporary_path(
        self, tmp_path: Path, shipped: Path, installed: Path, card: bytes
    ) -> None:
        files = {"models/tiny/card.toml": card, **below("models/tiny", FILES)}
        message = refused(by_hand(tmp_path, files), shipped, installed)
        assert message.startswith("cannot install: card tiny/card.toml: ")

    def test_a_card_of_another_name_than_its_folder_is_refused(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        files = {"models/other/card.toml": card_bytes(tmp_path, card_table())}
        files |= below("models/other", FILES)
        assert "is of another name" in refused(by_hand(tmp_path, files), shipped, installed)

    def test_an_alias_that_another_model_has_is_refused_since_neither_would_be_served(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        write_model(shipped, card_table("there", aliases=["small"]))
        card = card_bytes(tmp_path, card_table(aliases=["small"]))
        files = {"models/tiny/card.toml": card, **below("models/tiny", FILES)}
        message = refused(by_hand(tmp_path, files), shipped, installed)
        assert "models there and tiny both claim 'small'" in message

    def test_a_model_that_is_there_and_contradicts_another_is_not_called_installed(
        self, bundle: Path, shipped: Path, installed: Path
    ) -> None:
        installing(bundle, shipped, installed)
        write_card(installed, card_table("one", aliases=["tiny-too"]))
        write_card(installed, card_table("two", aliases=["tiny-too"]))
        installing(bundle, shipped, installed)  # they are none of the bundle's
        write_card(installed / "elsewhere", card_table())
        assert "models tiny and tiny both claim 'tiny'" in refused(bundle, shipped, installed)

    def test_a_bundle_without_models_is_refused(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        assert "holds no model" in refused(by_hand(tmp_path, {}), shipped, installed)

    def test_more_than_fits_on_the_disk_is_refused_before_it_is_unpacked(
        self, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        size = 1 << 42  # a file with a hole, which takes no room itself
        files = {
            "models/tiny/card.toml": {"bytes": 0, "sha256": hashlib.sha256().hexdigest()},
            "models/tiny/weights": {"bytes": size, "sha256": "0" * 64},
        }
        table = {"files": files, "format": 1, "software": "embedding-server 1"}
        manifest = json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
        path = tmp_path / "large.bundle"
        path.write_bytes(bundle_bytes({}, manifest=manifest))
        with path.open("r+b") as file:
            # Headers: the card's, and three blocks for a size over 8 GiB.
            file.truncate(path.stat().st_size + 512 + 3 * 512 + size)
        message = refused(path, shipped, installed)
        assert f"{installed} has " in message
        assert f"and the models need {size + 2 * 4096}" in message

    def test_a_link_that_leads_nowhere_is_not_written_through(
        self, bundle: Path, tmp_path: Path, shipped: Path, installed: Path
    ) -> None:
        (installed / "tiny").symlink_to(tmp_path / "nowhere")
        assert "cannot install into" in refused(bundle, shipped, installed, replace=True)
        assert not (tmp_path / "nowhere").exists()
