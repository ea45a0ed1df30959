"""SBOM and licences of real zip archives, checked by CycloneDX's own schema."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.delivery.bundle_writer import Contents
from server.delivery.papers import LICENCES, SBOM
from server.errors import BundleError, MissingExtra
from tests.catalog import FILES, card_table, pins, variant_table, write_model
from tests.conftest import REPOSITORY
from tests.wheels import write_wheel

HUB = {"kind": "hub", "repository": "org/tiny", "revision": "c" * 40, "files": ["graph.onnx"]}


@pytest.fixture
def cards(tmp_path: Path) -> list[Card]:
    models = tmp_path / "models"
    write_model(models, card_table(sources=[HUB], license="some terms"))
    rotation = {"rotation.safetensors": b"a rotation"}
    own = write_model(models, variant_table(license="MIT", files=pins(rotation)), rotation)
    return [read_card(own, models)]


@pytest.fixture
def wheels(tmp_path: Path) -> list[Path]:
    """The software needs `a[fast]`, that needs `b`, and `c` only on Windows; nobody asks for `d`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    needs = [
        "Requires-Dist: a[fast]>=1",
        'Requires-Dist: e; extra == "shared"',
        'Requires-Dist: b; extra == "dev"',
        'Requires-Dist: absent; extra == "dev"',
    ]
    of_a = [
        'Requires-Dist: b; extra == "fast"',
        'Requires-Dist: c; sys_platform == "win32"',
        "Requires-Dist: d[fast]; extra == 'slow'",
    ]
    return [
        write_wheel(folder, metadata=["License-Expression: Apache-2.0", *needs]),
        write_wheel(folder, "A", "1", metadata=["License: MIT License\n  text", *of_a]),
        write_wheel(folder, "b", "1", metadata=["Classifier: License :: OSI Approved :: BSD"]),
        write_wheel(folder, "c", "1", in_dist_info={"sboms/c.json": b"{}"}),
        write_wheel(folder, "d", "1", metadata=["License: UNKNOWN"], in_dist_info={}),
        write_wheel(folder, "e", "1"),
    ]


def sbom_of(contents: Contents) -> dict[str, Any]:
    from cyclonedx.schema import SchemaVersion  # here: it takes seconds
    from cyclonedx.validation.json import JsonStrictValidator

    text = contents.papers[SBOM].decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in document["components"] if one["name"] == name)
    assert isinstance(found, dict)
    return found


class TestSbom:
    def test_a_wheel_has_its_version_digest_purl_and_licence(
        self, cards: list[Card], wheels: list[Path]
    ) -> None:
        document = sbom_of(Contents(cards, wheels))
        found = component(document, "a")
        digest = hashlib.sha256(wheels[1].read_bytes()).hexdigest()
        assert found["hashes"] == [{"alg": "SHA-256", "content": digest}]
        assert found["purl"] == "pkg:pypi/a@1?file_name=A-1-py3-none-any.whl"
        assert found["licenses"][0]["license"]["name"] == "MIT License"
        assert component(document, "e")["licenses"][0]["license"]["id"] == "MIT"
        assert component(document, "b")["licenses"][0]["license"]["name"] == "BSD"
        assert "licenses" not in component(document, "d")
        told = {(each["name"], each["value"]) for each in component(document, "c")["properties"]}
        assert ("embedding-server:sbom-in-wheel", "c-1.dist-info/sboms/c.json") in told
        assert ("embedding-server:licence-text", "missing in the wheel") in told

    def test_dependencies_are_those_that_count_on_any_platform(
        self, cards: list[Card], wheels: list[Path]
    ) -> None:
        document = sbom_of(Contents(cards, wheels))
        needs = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
        whl = "wheels/{}-1-py3-none-any.whl".format
        root = document["metadata"]["component"]
        assert needs[root["bom-ref"]] == ["models/tiny", "models/variant", whl("A"), whl("e")]
        assert needs[whl("A")] == [whl("b"), whl("c")]
        assert needs["models/variant"] == ["models/tiny"]
        own = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        assert (root["type"], root["hashes"][0]["content"]) == ("application", own)

    def test_each_of_the_wheels_for_several_machines_is_listed_and_needed(
        self, tmp_path: Path
    ) -> None:
        own = write_wheel(tmp_path, metadata=["Requires-Dist: a"])
        tags = ("cp311-cp311-linux_x86_64", "cp312-cp312-linux_x86_64")
        needs: tuple[list[str], ...] = (["Requires-Dist: b"], [])
        both = [
            write_wheel(tmp_path, "a", "1", tag=tag, metadata=more)
            for tag, more in zip(tags, needs, strict=True)
        ]
        document = sbom_of(Contents([], [own, *both, write_wheel(tmp_path, "b", "1")]))
        found = {
            one["bom-ref"]: one["hashes"][0]["content"]
            for one in document["components"]
            if one["name"] == "a"
        }
        assert found == {
            f"wheels/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in both
        }
        root = document["metadata"]["component"]["bom-ref"]
        wanted = {each["ref"]: each.get("dependsOn", []) for each in document["dependencies"]}
        assert wanted[root] == sorted(found)

    def test_a_model_has_its_licence_source_and_the_digest_of_each_file(
        self, cards: list[Card]
    ) -> None:
        document = sbom_of(Contents(cards, []))
        tiny = component(document, "tiny")
        assert tiny["type"] == "machine-learning-model"
        assert tiny["licenses"][0]["license"]["name"] == "some terms"
        assert tiny["purl"] == f"pkg:huggingface/org/tiny@{'c' * 40}"
        source = f"https://huggingface.co/org/tiny/tree/{'c' * 40}"
        assert [each["url"] for each in tiny["externalReferences"]] == [source]
        found = {each["name"]: each["hashes"][0]["content"] for each in tiny["components"]}
        assert cards[0].base
        card = cards[0].base.path("card.toml").read_bytes()
        whole = {**FILES, "card.toml": card}
        assert found == {n: hashlib.sha256(content).hexdigest() for n, content in whole.items()}
        assert tiny["version"] == cards[0].base.fingerprint

    def test_the_same_content_gives_the_same_bytes_in_another_process(
        self, tmp_path: Path, cards: list[Card], wheels: list[Path]
    ) -> None:
        here = Contents(cards, wheels).papers
        script = (
            "import sys; from pathlib import Path; from server.delivery.bundle_writer import *\n"
            "from server.catalog.registry import read_registry\n"
            "cards = read_registry(Path('models')).cards\n"
            "papers = Contents(cards, sorted(Path('wheels').iterdir())).papers\n"
            f"sys.stdout.buffer.write(papers['{SBOM}'] + papers['{LICENCES}'])"
        )
        there = subprocess.run(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONHASHSEED": "4",
                "PYTHONPATH": str(REPOSITORY),
                "TZ": "Asia/Tokyo",
            },
            capture_output=True,
            check=True,
        )
        assert there.stdout == here[SBOM] + here[LICENCES]
        document = json.loads(here[SBOM])
        assert "timestamp" not in document["metadata"]
        wheels[1].write_bytes(wheels[1].read_bytes() + b"\n")
        other = json.loads(Contents(cards, wheels).papers[SBOM])
        assert other["serialNumber"] != document["serialNumber"]

    def test_without_the_library_one_line_says_how_to_get_it(self, cards: list[Card]) -> None:
        with (
            mock.patch.dict(sys.modules, {"cyclonedx": None}),
            pytest.raises(MissingExtra, match="needs cyclonedx-python-lib"),
        ):
            Contents(cards, [])


class TestLicences:
    @pytest.fixture
    def apache(self, tmp_path: Path) -> Card:
        """A model whose text the software itself has."""
        return read_card(write_model(tmp_path, card_table()), tmp_path)

    @pytest.mark.parametrize(
        "member",
        [
            "own-1.dist-info/LICENSE",
            "own-1.dist-info/licenses/vendor/AUTHORS",
            "own/LICENCE.txt",
            "own/deep/COPYING.LESSER",
            "own/ThirdPartyNotices.txt",
            "own/NOTICE",
            "own/LICENSE-MIT",
        ],
    )
    def test_a_text_is_found_wherever_a_wheel_keeps_it(
        self, tmp_path: Path, apache: Card, member: str
    ) -> None:
        wheel = write_wheel(tmp_path, "own", "1", in_dist_info={}, members={member: b"my terms"})
        text = Contents([apache], [wheel]).papers[LICENCES].decode()
        assert f"--- {member}\n\nmy terms\n" in text
        assert "No licence text" not in text

    @pytest.mark.parametrize("member", ["own/license.py", "own/licensed_work.txt", "own/noticed"])
    def test_what_holds_no_terms_is_left_out_and_the_wheel_is_named(
        self, tmp_path: Path, apache: Card, member: str
    ) -> None:
        wheel = write_wheel(tmp_path, "own", "1", in_dist_info={}, members={member: b"not this"})
        contents = Contents([apache], [wheel])
        assert contents.without_licence_text == ("own 1: MIT",)
        text = contents.papers[LICENCES].decode()
        assert "not this" not in text
        assert "No licence text comes with these; what is said of them:\n\n- own 1: MIT\n" in text

    def test_a_text_of_another_encoding_can_be_read(self, tmp_path: Path, apache: Card) -> None:
        terms = "© Müller".encode("latin-1")
        wheel = write_wheel(tmp_path, in_dist_info={"LICENSE": terms})
        assert "© Müller" in Contents([apache], [wheel]).papers[LICENCES].decode()

    def test_a_models_own_text_comes_and_a_missing_one_is_named(self, tmp_path: Path) -> None:
        files = {**FILES, "LICENSE.md": b"the model's terms"}
        table = card_table(files=pins(files), license="some terms")
        with_text = read_card(write_model(tmp_path, table, files), tmp_path)
        without = read_card(write_model(tmp_path, card_table("bare", license="MIT")), tmp_path)
        contents = Contents([with_text, without], [])
        assert "the model's terms" in contents.papers[LICENCES].decode()
        assert contents.without_licence_text == ("model bare: MIT (model of tests)",)

    def test_apache_is_the_text_that_the_software_itself_has(self, apache: Card) -> None:
        text = Contents([apache], []).papers[LICENCES].decode()
        assert (REPOSITORY / "LICENSE").read_text().strip() in text


class TestWheels:
    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04"])
    def test_what_cannot_be_read_as_a_wheel_is_named(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "own-1-py3-none-any.whl"
        path.write_bytes(content)
        with pytest.raises(BundleError, match=f"{path} cannot be read as a wheel"):
            Contents([], [path])

    def test_one_without_metadata_is_named(self, tmp_path: Path) -> None:
        import zipfile

        path = tmp_path / "own-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("own/x.py", "")
        with pytest.raises(BundleError, match=f"{path} cannot be read as a wheel"):
            Contents([], [path])

    def test_one_whose_metadata_is_no_text_is_named(self, tmp_path: Path) -> None:
        import zipfile

        path = tmp_path / "own-1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("own-1.dist-info/METADATA", b"Name: \xff\nVersion: 1\n")
        with pytest.raises(BundleError, match=f"{path} cannot be read as a wheel"):
            Contents([], [path])
