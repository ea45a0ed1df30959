from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import __version__
from server.catalog.card import Card, FilePin
from server.catalog.card_file import read_card
from server.delivery import bundle_format
from server.delivery.bundle_format import MAX_MANIFEST_BYTES, Manifest
from server.delivery.bundle_reader import BundleReader
from server.delivery.bundle_writer import Contents
from server.errors import BundleError, ModelFileError
from tests.catalog import FILES, bundle_bytes, card_table, pins, variant_table, write_model
from tests.wheels import write_wheel

ROTATION = {"rotation.safetensors": b"a rotation"}
SHA256 = hashlib.sha256(b"").hexdigest()
CARD = {"models/tiny/card.toml": b"a card"}


@pytest.fixture
def variant(tmp_path: Path) -> Card:
    models_dir = tmp_path / "models"
    write_model(models_dir, card_table())
    table = variant_table(files=pins(ROTATION))
    return read_card(write_model(models_dir, table, ROTATION), models_dir)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    return write_wheel(tmp_path)


def write(file: Path, cards: Iterable[Card], wheels: Iterable[Path] = ()) -> str:
    return Contents(cards, wheels).write(file, force=False, report=lambda _: None)


def read(content: bytes, folder: Path) -> dict[str, bytes]:
    """Every file of the bundle with this content, all of it compared."""
    path = folder / "read.bundle"
    path.write_bytes(content)
    with path.open("rb") as file:
        reader = BundleReader(file, path)
        found = {name: b"".join(chunks) for name, chunks in reader.members()}
    assert reader.sha256 == hashlib.sha256(content).hexdigest()
    return found


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        read(content, folder)
    assert caught.value.message.isprintable()
    return caught.value.message


def as_member(name: str, content: bytes = b"", **changes: Any) -> bytes:
    """What `bundle create` would never write."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), 315_532_800
    for key, value in changes.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


class TestWriting:
    def test_a_bundle_holds_a_model_its_base_and_the_wheels_as_they_are(
        self, variant: Card, wheel: Path, tmp_path: Path
    ) -> None:
        write(tmp_path / "b", [variant], [wheel])
        found = read((tmp_path / "b").read_bytes(), tmp_path)
        readme = found.pop("README.txt")
        assert b"pip install --no-index --find-links wheels embedding-server" in readme
        assert {"sbom.cdx.json", "licences.txt"} < found.keys()
        del found["sbom.cdx.json"], found["licences.txt"]
        assert found == {
            "models/tiny/card.toml": (tmp_path / "models/tiny/card.toml").read_bytes(),
            "models/variant/card.toml": variant.path("card.toml").read_bytes(),
            **{f"models/tiny/{name}": content for name, content in FILES.items()},
            "models/variant/rotation.safetensors": b"a rotation",
            f"wheels/{wheel.name}": wheel.read_bytes(),
        }

    def test_the_same_content_gives_the_same_bytes_whenever_and_in_what_order_it_is_named(
        self, variant: Card, wheel: Path, tmp_path: Path
    ) -> None:
        assert variant.base
        first = write(tmp_path / "one", [variant, variant.base], [wheel])
        for path in (tmp_path / "models").rglob("*"):
            path.chmod(0o700)
            os.utime(path, (1, 1))
        second = write(tmp_path / "two", [variant.base, variant, variant], [wheel])
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert first == second == hashlib.sha256((tmp_path / "one").read_bytes()).hexdigest()

    def test_the_bytes_are_these_on_every_machine_and_python(self, tmp_path: Path) -> None:
        # A change here makes bundles that older software refuses: then FORMAT must change too.
        files = {"models/tiny/card.toml": b"a card", "models/tiny/weights": bytes(513)}
        papers = {"licences.txt": b"all rights", "sbom.cdx.json": b"{}"}
        golden = {
            1: "1d472c8905a670478f6ee7157c1e65366c45c8f68b529ee2817163a1436004d8",
            2: "00ec17f6cce26be511b2a7cbf088ccf9ceacb90f6270c7626bffc850e3ae8c1d",
        }
        for number, digest in golden.items():
            held = files | (papers if number > 1 else {})
            content = bundle_bytes(held, software="embedding-server 0.1.0", format=number)
            assert hashlib.sha256(content).hexdigest() == digest
            assert read(content, tmp_path) == held

    def test_a_bundle_of_the_first_format_holds_no_papers(self, tmp_path: Path) -> None:
        content = bundle_bytes({"sbom.cdx.json": b"{}"}, format=1)
        assert "'sbom.cdx.json' is neither a wheel nor a file of" in refused(content, tmp_path)

    def test_plain_tar_lists_and_unpacks_it_without_a_complaint(
        self, variant: Card, wheel: Path, tmp_path: Path
    ) -> None:
        write(tmp_path / "b", [variant], [wheel])
        listed = subprocess.run(
            ["tar", "tf", tmp_path / "b"], capture_output=True, text=True, check=True
        )
        assert listed.stderr == ""
        assert listed.stdout.splitlines()[:2] == ["bundle.json", "README.txt"]
        (tmp_path / "out").mkdir()
        unpacked = subprocess.run(
            ["tar", "xf", tmp_path / "b", "wheels"],
            cwd=tmp_path / "out",
            capture_output=True,
            text=True,
            check=True,
        )
        assert unpacked.stderr == ""
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["wheels"]
        assert (tmp_path / "out" / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()

    def test_the_list_tells_the_software_and_each_files_size_and_sha256(
        self, variant: Card, tmp_path: Path
    ) -> None:
        write(tmp_path / "b", [variant])
        with tarfile.open(tmp_path / "b") as archive:
            opened = archive.extractfile("bundle.json")
            assert opened
            listed = json.load(opened)
            others = {info.name: info.size for info in archive if info.name != "bundle.json"}
        assert listed["software"] == f"embedding-server {__version__}"
        assert listed["format"] == 2
        assert {name: pin["bytes"] for name, pin in listed["files"].items()} == others
        weights = listed["files"]["models/tiny/model.safetensors"]
        assert weights["sha256"] == hashlib.sha256(FILES["model.safetensors"]).hexdigest()

    def test_long_names_and_other_alphabets_come_through(self, tmp_path: Path) -> None:
        long = "x" * 200
        files = {f"{long}/мodèle.bin": b"1", "empty": b"", "1_Pooling/config.json": b"{}"}
        table = card_table("organisation/tiny", files=pins(files))
        card = read_card(write_model(tmp_path, table, files), tmp_path)
        write(tmp_path / "b", [card])
        found = read((tmp_path / "b").read_bytes(), tmp_path)
        assert found[f"models/organisation/tiny/{long}/мodèle.bin"] == b"1"
        assert found["models/organisation/tiny/empty"] == b""
        listed = subprocess.run(["tar", "tf", tmp_path / "b"], capture_output=True, check=True)
        assert long.encode() in listed.stdout

    def test_a_model_of_more_than_8_gib_has_a_header_that_tools_read(self) -> None:
        header = bundle_format.header("models/big/weights", 9 << 30)
        with tarfile.open(fileobj=io.BytesIO(header + bytes(1024))) as archive:
            found = archive.next()
        assert found
        assert (found.name, found.size) == ("models/big/weights", 9 << 30)

    @pytest.mark.parametrize(
        "file", ["a b", ".hidden", "a\\b", "-rf", "C:evil", "x/./y", "x/card.toml"]
    )
    def test_a_file_that_no_bundle_may_hold_is_named_when_it_is_made(
        self, tmp_path: Path, file: str
    ) -> None:
        table = card_table(files=pins({file: b"x"}))
        card = read_card(write_model(tmp_path, table, {file: b"x"}), tmp_path)
        with pytest.raises(BundleError, match="cannot bundle"):
            Contents([card], [])

    def test_a_missing_file_is_named_with_the_way_to_get_it(self, variant: Card) -> None:
        assert variant.base
        variant.base.path("graph.onnx").unlink()
        with pytest.raises(ModelFileError, match=r"tiny/graph\.onnx.*models pull"):
            Contents([variant], [])

    @pytest.mark.parametrize("content", [b"A graph", b"a grap", b"a graph!"])
    def test_a_file_that_is_not_as_its_card_says_leaves_no_bundle(
        self, variant: Card, tmp_path: Path, content: bytes
    ) -> None:
        assert variant.base
        contents = Contents([variant], [])
        graph = variant.base.path("graph.onnx")
        graph.write_bytes(content)  # changed after its size was looked at
        (tmp_path / "out").mkdir()
        with pytest.raises(BundleError, match=str(graph)):
            contents.write(tmp_path / "out/b", force=False, report=lambda _: None)
        assert list((tmp_path / "out").iterdir()) == []

    def test_a_base_in_a_folder_of_another_name_is_refused_since_it_would_not_be_found(
        self, tmp_path: Path
    ) -> None:
        folder = write_model(tmp_path, card_table())
        folder.rename(tmp_path / "other")
        with pytest.raises(BundleError, match="lies in a folder of another name"):
            Contents([read_card(tmp_path / "other", tmp_path)], [])

    def test_a_file_that_is_there_is_replaced_only_by_force(
        self, variant: Card, tmp_path: Path
    ) -> None:
        (tmp_path / "b").write_bytes(b"precious")
        with pytest.raises(BundleError, match="b exists; --force"):
            write(tmp_path / "b", [variant])
        assert (tmp_path / "b").read_bytes() == b"precious"
        (tmp_path / "b").unlink()
        (tmp_path / "b.sig").write_bytes(b"a signature of what was there")
        with pytest.raises(BundleError, match=r"b\.sig exists; --force"):
            write(tmp_path / "b", [variant])
        Contents([variant], []).write(tmp_path / "b", force=True, report=lambda _: None)
        assert not (tmp_path / "b.sig").exists()
        assert read((tmp_path / "b").read_bytes(), tmp_path)

    def test_a_file_that_appears_while_the_bundle_is_written_is_not_replaced(
        self, variant: Card, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        with pytest.raises(BundleError, match="exists"):
            Contents([variant], []).write(
                out / "b", force=False, report=lambda _: (out / "b").touch()
            )
        assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("b", b"")]

    def test_an_interruption_leaves_nothing(self, variant: Card, tmp_path: Path) -> None:
        out = tmp_path / "out"
        out.mkdir()

        def interrupt(_: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Contents([variant], []).write(out / "b", force=False, report=interrupt)
        assert list(out.iterdir()) == []

    def test_the_progress_adds_up_to_the_files_size(self, variant: Card, tmp_path: Path) -> None:
        contents = Contents([variant], [])
        steps: list[int] = []
        contents.write(tmp_path / "b", force=False, report=steps.append)
        assert sum(steps) == contents.archive_bytes == (tmp_path / "b").stat().st_size

    def test_a_place_that_cannot_be_written_is_named(self, variant: Card, tmp_path: Path) -> None:
        for place in (tmp_path / "absent" / "b", tmp_path):
            with pytest.raises(BundleError, match=f"cannot write {place}"):
                write(place, [variant])


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "models/tiny/../../x",
            "../x",
            "/etc/passwd",
            "models/tiny//x",
            "models/tiny/./x",
            "models/tiny/.x",
            "models/tiny/x/",
            "models/tiny/a\\b",
            "models/tiny/a\nb",
            "models/tiny/a\x1b[2J",
            "models/tiny/C:x",
            "models/tiny/",
            "models/tiny",
            "models/x",
            "models/other/x",
            "other",
            "",
            "wheels/x",
            "wheels/deep/x.whl",
            "wheels/.whl",
            "bundle.json",
            "models/card.toml",
            "models/a/b/c/card.toml",
            "models/tiny/x/card.toml",
            "models/-a/card.toml",
            "models/_a/card.toml",
        ],
    )
    def test_a_path_that_is_neither_a_wheels_nor_a_models_is_refused(
        self, path: str, tmp_path: Path
    ) -> None:
        message = refused(bundle_bytes({**CARD, path: b"x"}), tmp_path)
        assert message.startswith(f"bundle {tmp_path / 'read.bundle'}: bundle.json: ")

    def test_paths_that_some_file_systems_take_for_one_are_refused(self, tmp_path: Path) -> None:
        for one, other in [("a", "A"), ("é", "e\u0301"), ("ß", "SS")]:
            files = {**CARD, f"models/tiny/{one}": b"1", f"models/tiny/{other}": b"2"}
            assert "bundle.json: files: " in refused(bundle_bytes(files), tmp_path)

    def test_a_model_inside_another_ones_folder_is_refused(self, tmp_path: Path) -> None:
        files = {"models/a/card.toml": b"1", "models/a/b/card.toml": b"2"}
        assert "exactly one model" in refused(bundle_bytes(files), tmp_path)

    @given(
        st.lists(
            st.sampled_from(["models", "tiny", "wheels", "..", ".", "", "x", "a.whl", "card.toml"])
            | st.text(max_size=5),
            max_size=5,
        ).map("/".join)
    )
    def test_no_path_leads_out_of_its_folder(self, path: str) -> None:
        try:
            Manifest(files={name: FilePin(bytes=0, sha256=SHA256) for name in (*CARD, path)})
        except ValueError:
            return
        assert os.path.normpath(path) == path
        assert path.startswith(("models/", "wheels/", "README.txt"))


class TestOtherMembers:
    @pytest.mark.parametrize(
        ("member", "named"),
        [
            ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
            ({"type": tarfile.LNKTYPE, "linkname": "bundle.json"}, "a hard link"),
            ({"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}, "a device"),
            ({"type": tarfile.BLKTYPE}, "a device"),
            ({"type": tarfile.FIFOTYPE}, "a named pipe"),
            ({"type": tarfile.DIRTYPE}, "a folder"),
            ({"mode": 0o4755}, "a member"),
            ({"uid": 1000}, "a member"),
            ({"mtime": 0}, "a member"),
            ({"linkname": "x"}, "a member"),
            ({"path": "models/tiny/../x"}, "a member"),
            ({"path": "/etc/cron.d/x"}, "a member"),
            ({"size": 0}, "a member"),
            ({"size": 6}, "a member"),
        ],
        ids=str,
    )
    def test_a_member_that_is_not_the_plain_file_of_the_list_is_refused_and_told(
        self, tmp_path: Path, member: dict[str, Any], named: str
    ) -> None:
        files = {**CARD, "models/tiny/x": b"12345"}
        right = as_member("models/tiny/x", b"12345")
        content = bundle_bytes(files)
        assert content.count(right) == 1
        wrong = as_member("models/tiny/x", b"12345", **member)
        message = refused(content.replace(right, wrong[: len(right)]), tmp_path)
        assert f"{named} " in message
        assert "stands where models/tiny/x should be" in message

    def test_a_member_that_the_list_does_not_name_is_refused(self, tmp_path: Path) -> None:
        content = bundle_bytes(CARD)
        for extra in (as_member("models/tiny/x", b"1"), as_member("models/tiny/card.toml", b"2")):
            assert "bytes after its end" in refused(content[:-1024] + extra + bytes(1024), tmp_path)

    def test_a_member_of_the_list_that_is_not_there_is_missed(self, tmp_path: Path) -> None:
        content = bundle_bytes({**CARD, "models/tiny/x": b"1"})
        without = content.replace(as_member("models/tiny/x", b"1"), b"")
        assert len(without) < len(content)
        assert "is cut off" in refused(without, tmp_path)
        padded = without + bytes(len(content) - len(without))
        assert "models/tiny/x is not as bundle.json says" in refused(padded, tmp_path)

    def test_the_list_must_come_first(self, tmp_path: Path) -> None:
        content = as_member("models/tiny/card.toml", b"a card") + bundle_bytes(CARD)
        assert "does not begin with bundle.json" in refused(content, tmp_path)


class TestDamage:
    CONTENT = staticmethod(
        lambda: bundle_bytes({**CARD, "models/tiny/graph.onnx": bytes(range(256)) * 3})
    )

    @pytest.mark.slow
    def test_one_changed_bit_anywhere_is_refused_but_in_the_number_of_the_software(
        self, tmp_path: Path
    ) -> None:
        right = self.CONTENT()
        version = right.index(__version__.encode())
        number = range(version, version + len(__version__))
        wrong = bytearray(right)
        for at in range(0, len(right), 3):
            if at not in number:
                wrong[at] ^= 1 << at % 8
                refused(bytes(wrong), tmp_path)
                wrong[at] = right[at]

    @given(data=st.data())
    def test_changed_bytes_are_refused_or_change_nothing_that_is_unpacked(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        right = self.CONTENT()
        start = data.draw(st.integers(0, len(right)))
        end = data.draw(st.integers(start, min(start + 1100, len(right))))
        wrong = right[:start] + data.draw(st.binary(max_size=1100)) + right[end:]
        folder = tmp_path_factory.getbasetemp()
        try:
            found = read(wrong, folder)
        except BundleError:
            return
        assert found == read(right, folder)

    @given(at=st.integers(0, 10_000))
    def test_a_bundle_that_is_cut_off_anywhere_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, at: int
    ) -> None:
        content = self.CONTENT()
        refused(content[: at % len(content)], tmp_path_factory.getbasetemp())

    @given(st.binary(max_size=3000))
    def test_what_is_no_bundle_is_refused(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        refused(content, tmp_path_factory.getbasetemp())

    @pytest.mark.parametrize("tail", [b"\0", b"x", bytes(1024), bytes(9 << 10)], ids=len)
    def test_anything_after_the_end_is_refused(self, tmp_path: Path, tail: bytes) -> None:
        assert f"{len(tail)} bytes after its end" in refused(self.CONTENT() + tail, tmp_path)

    def test_other_bytes_of_the_same_size_are_told_with_both_digests(self, tmp_path: Path) -> None:
        message = refused(bundle_bytes(CARD).replace(b"a card", b"a cart"), tmp_path)
        assert "models/tiny/card.toml has sha256 " in message
        assert hashlib.sha256(b"a cart").hexdigest() in message
        assert hashlib.sha256(b"a card").hexdigest() in message

    def test_what_the_caller_leaves_unread_is_compared_all_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "b"
        path.write_bytes(bundle_bytes(CARD).replace(b"a card", b"a cart"))
        with path.open("rb") as file, pytest.raises(BundleError, match="has sha256"):
            for _ in BundleReader(file, path).members():
                pass


class TestList:
    """Manifests that `bundle create` would not write."""

    @pytest.mark.parametrize("number", [0, 3, 99])
    def test_another_format_is_told_before_anything_else_of_it_is_looked_at(
        self, tmp_path: Path, number: int
    ) -> None:
        content = bundle_bytes({}, manifest=json.dumps({"format": number, "new": []}).encode())
        assert f"has format {number}, and this software reads 1 and 2:" in refused(
            content, tmp_path
        )

    @pytest.mark.parametrize(
        "manifest",
        [
            b"",
            b"[]",
            b"{}",
            b"{",
            b"\xff",
            b"[" * 100_000,
            b'{"format": 1}',
            b'{"format": "1", "files": {}}',
            b'{"format": 1, "files": {"\\ud800": {}}}',
            b'{"format": 1, "software": "embedding-server \\u001b[2J", "files": {}}',
            b'{"format": 1, "files": {"\\u001b[2J": {"bytes": -1}}}',
            b'{"format": 1, "files": {}, "\\u001b[2J": 1}',
            b'{"format": 1, "files": {}, "format": 1}',
        ],
        ids=lambda manifest: str(manifest[:60]),
    )
    def test_a_list_of_another_form_is_refused_in_one_line(
        self, tmp_path: Path, manifest: bytes
    ) -> None:
        assert "bundle.json" in refused(bundle_bytes({}, manifest=manifest), tmp_path)

    def test_a_list_may_be_written_in_one_way_only(self, tmp_path: Path) -> None:
        table = {"files": {}, "format": 1, "software": f"embedding-server {__version__}"}
        right = json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
        assert read(bundle_bytes({}, manifest=right), tmp_path) == {}
        twice = right.replace(b'"format": 1,', b'"format": 2,\n "format": 1,')
        for wrong in (right + b" ", right.replace(b"\n", b"\r\n"), twice):
            message = refused(bundle_bytes({}, manifest=wrong), tmp_path)
            assert "not written as it must be" in message

    def test_a_list_that_is_too_large_is_refused_unread(self, tmp_path: Path) -> None:
        content = bundle_bytes({}, manifest=b" " * (MAX_MANIFEST_BYTES + 1))
        assert f"bundle.json has {MAX_MANIFEST_BYTES + 1} bytes" in refused(content, tmp_path)

    @pytest.mark.parametrize(
        ("size", "reason"), [(10**13, "is cut off"), (10**30, "bytes: Input should be less than")]
    )
    def test_a_size_that_lies_is_refused_before_a_byte_is_unpacked(
        self, tmp_path: Path, size: int, reason: str
    ) -> None:
        table = {
            "format": 1,
            "software": "embedding-server 1",
            "files": {"models/tiny/card.toml": {"bytes": size, "sha256": SHA256}},
        }
        manifest = json.dumps(table, indent=1, sort_keys=True).encode() + b"\n"
        assert reason in refused(bundle_bytes({}, manifest=manifest), tmp_path)
