"""`bundle create --sign` and `--trust`, as a site without network uses them."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from server.commands import progress
from server.delivery.signatures import NAMESPACE
from tests.catalog import FILES, bundle_bytes, card_table, pins, write_model
from tests.command_line import Outcome, assert_mistake, run
from tests.wheels import write_wheel


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key `ours`, and the file `trusted` that says it counts."""
    folder = tmp_path / "keys"
    folder.mkdir()
    make: list[str | Path] = [
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-C",
        "",
        "-f",
        folder / "ours",
    ]
    subprocess.run(make, check=True)
    public = (folder / "ours.pub").read_text()
    (folder / "trusted").write_text(f'maker@site namespaces="{NAMESPACE}" {public}')
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_model(tmp_path / "models", card_table())
    return tmp_path / "models"


def create(bundle: Path, models: Path, *more: str | Path) -> Outcome:
    return run("bundle", "create", "tiny", "-o", bundle, "--models-dir", models, *more)


@pytest.fixture
def bundle(tmp_path: Path, keys: Path, models: Path) -> Path:
    path = tmp_path / "b.bundle"
    assert create(path, models, "--sign", keys / "ours").exit_code == 0
    return path


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Outcome]:
    (tmp_path / "shipped").mkdir()
    there = ("--models-dir", tmp_path / "shipped", "--data-dir", tmp_path / "data")
    return lambda bundle, *more, env=None: run("bundle", "install", bundle, *there, *more, env=env)


def installed(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("data/models/*")]


class TestCreating:
    def test_the_signature_lies_beside_the_bundle_and_its_key_is_told(
        self, tmp_path: Path, keys: Path, models: Path
    ) -> None:
        outcome = create(tmp_path / "b", models, "--sign", keys / "ours")
        assert outcome.stderr.startswith("signed with ED25519 key SHA256:")
        assert outcome.stderr.endswith(f": {tmp_path / 'b.sig'}\n")
        subprocess.run(["sha256sum", "-c"], input=outcome.stdout, text=True, check=True)
        content = (tmp_path / "b").read_bytes()
        assert create(tmp_path / "c", models).exit_code == 0
        assert (tmp_path / "c").read_bytes() == content

    def test_a_key_that_is_not_there_is_told_before_the_bundle_is_made(
        self, tmp_path: Path, models: Path
    ) -> None:
        outcome = create(tmp_path / "b", models, "--sign", tmp_path / "absent")
        assert_mistake(outcome, f"key {tmp_path / 'absent'} does not exist")
        assert not (tmp_path / "b").exists()

    def test_a_bundle_made_anew_without_a_signature_has_none(
        self, bundle: Path, models: Path
    ) -> None:
        assert create(bundle, models, "--force").exit_code == 0
        assert not bundle.with_name("b.bundle.sig").exists()


class TestInstalling:
    def test_who_signed_it_is_told(
        self, tmp_path: Path, bundle: Path, keys: Path, install: Callable[..., Outcome]
    ) -> None:
        outcome = install(bundle, "--trust", keys / "trusted")
        told, model = outcome.stdout.splitlines()
        assert told.startswith("signed by maker@site with ED25519 key SHA256:")
        assert model.startswith("tiny: installed in ")
        shown = run("bundle", "show", bundle, "--trust", keys / "trusted").stdout
        assert f"\n{told}\n" in shown

    def test_without_trust_it_says_that_nobody_vouched_for_the_key(
        self, bundle: Path, install: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = install(bundle).stdout.splitlines()[0]
        assert first.startswith("signed with ED25519 key SHA256:")
        assert first.endswith("; no --trust says whether that key counts")
        monkeypatch.setenv("PATH", "/nowhere")
        without = install(bundle)
        assert without.exit_code == 0
        assert without.stdout.startswith("signed, but nobody looked: there is no ssh-keygen here\n")

    def test_a_signature_that_is_not_the_bundles_is_refused_even_so(
        self, tmp_path: Path, bundle: Path, models: Path, install: Callable[..., Outcome]
    ) -> None:
        write_model(models, card_table(embedding_dim=16))
        other = tmp_path / "other"
        assert create(other, models).exit_code == 0
        bundle.write_bytes(other.read_bytes())
        assert_mistake(install(bundle), "b.bundle.sig does not count", "incorrect signature")
        assert installed(tmp_path) == []

    @pytest.mark.parametrize("way", ["flag", "environment", "file"])
    def test_each_source_of_settings_makes_a_signature_the_rule(
        self, tmp_path: Path, bundle: Path, keys: Path, install: Callable[..., Outcome], way: str
    ) -> None:
        trusted = keys / "trusted"
        config = tmp_path / "server.toml"
        config.write_text(f"trust = {json.dumps(str(trusted))}\n")
        flags = {"flag": ("--trust", trusted), "file": ("--config", config)}.get(way, ())
        env = {"EMBEDDING_SERVER_TRUST": str(trusted)} if way == "environment" else None
        bundle.with_name("b.bundle.sig").rename(tmp_path / "elsewhere")
        outcome = install(bundle, *flags, env=env)
        assert_mistake(outcome, f"{bundle} is not signed, and {trusted} says whose")
        assert not (tmp_path / "data").exists()
        (tmp_path / "elsewhere").rename(bundle.with_name("b.bundle.sig"))
        assert install(bundle, *flags, env=env).exit_code == 0

    def test_an_emptied_setting_lets_nothing_through(
        self, bundle: Path, install: Callable[..., Outcome]
    ) -> None:
        outcome = install(bundle, env={"EMBEDDING_SERVER_TRUST": ""})
        assert_mistake(outcome, "trust (EMBEDDING_SERVER_TRUST): must be an absolute path")

    @pytest.mark.parametrize("name", ["trust", "trust_revoked"])
    @pytest.mark.parametrize("way", ["environment", "file"])
    def test_a_rule_does_not_depend_on_the_folder_that_a_command_runs_in(
        self,
        tmp_path: Path,
        bundle: Path,
        keys: Path,
        install: Callable[..., Outcome],
        monkeypatch: pytest.MonkeyPatch,
        name: str,
        way: str,
    ) -> None:
        monkeypatch.chdir(keys)  # say, the stick, where somebody else has laid a list
        rules = {"trust": str(keys / "trusted")} | {name: "trusted"}
        config = tmp_path / "server.toml"
        config.write_text("".join(f"{key} = {json.dumps(rules[key])}\n" for key in rules))
        env = {f"EMBEDDING_SERVER_{key.upper()}": value for key, value in rules.items()}
        by_file = way == "file"
        flags = ("--config", config) if by_file else ()
        outcome = install(bundle, *flags, env=None if by_file else env)
        assert_mistake(outcome, f"setting {name} (", "must be an absolute path")
        assert not (tmp_path / "data").exists()
        assert install(bundle, "--trust", "trusted").exit_code == 0

    def test_revoked_keys_need_keys_that_are_trusted(
        self, bundle: Path, keys: Path, install: Callable[..., Outcome]
    ) -> None:
        revoked = ("--trust-revoked", keys / "ours.pub")
        assert_mistake(install(bundle, *revoked), "trust_revoked (--trust-revoked): needs trust")
        both = ("--trust", keys / "trusted", *revoked)
        assert_mistake(install(bundle, *both), "its key is revoked")

    def test_nothing_is_read_out_of_a_file_before_its_signature_is_verified(
        self, tmp_path: Path, keys: Path
    ) -> None:
        (tmp_path / "junk").write_bytes(b"no bundle")
        (tmp_path / "junk.sig").write_text("no signature")
        outcome = run("bundle", "show", tmp_path / "junk", "--trust", keys / "trusted")
        assert_mistake(outcome, "junk.sig does not count for it: Couldn't parse signature")

    def test_a_file_that_changes_after_it_was_verified_is_not_installed(
        self,
        tmp_path: Path,
        bundle: Path,
        keys: Path,
        models: Path,
        install: Callable[..., Outcome],
    ) -> None:
        files = {**FILES, "model.safetensors": b"evil weights"}
        write_model(models, card_table(files=pins(files)), files)
        evil = tmp_path / "evil"
        assert create(evil, models).exit_code == 0
        size, content = bundle.stat().st_size, evil.read_bytes()
        assert len(content) == size

        @contextlib.contextmanager
        def watched(label: str, total: int) -> Iterator[Callable[[int], None]]:
            read = 0

            def swap(count: int) -> None:
                nonlocal read
                read += count
                if read == size:  # all of it was given to ssh-keygen
                    bundle.write_bytes(content)

            yield swap

        with mock.patch.object(progress, "byte_progress", watched):
            outcome = install(bundle, "--trust", keys / "trusted")
        assert_mistake(outcome, "not the approved")
        assert installed(tmp_path) == []

    def test_the_digest_and_the_signature_are_both_asked_for(
        self, bundle: Path, keys: Path, install: Callable[..., Outcome]
    ) -> None:
        outcome = install(bundle, "--trust", keys / "trusted", "--sha256", "0" * 64)
        assert_mistake(outcome, "not the approved 000")

    def test_a_bundle_of_the_first_format_is_installed_as_ever(
        self, tmp_path: Path, models: Path, install: Callable[..., Outcome]
    ) -> None:
        folder = models / "tiny"
        files = {f"models/tiny/{path.name}": path.read_bytes() for path in folder.iterdir()}
        (tmp_path / "old").write_bytes(bundle_bytes(files, format=1))
        outcome = install(tmp_path / "old")
        assert outcome.stdout.splitlines()[0] == "not signed"
        assert installed(tmp_path) == ["tiny"]


def test_papers_of_a_folder_of_wheels_are_those_of_a_bundle(tmp_path: Path, models: Path) -> None:
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    write_wheel(wheels)
    write = ("bundle", "papers", "--models-dir", models, "--wheels-from", wheels, "-o", out)
    assert_mistake(run(*write), f"cannot write {out}")
    out.mkdir()
    outcome = run(*write)
    assert outcome.stdout == f"{out}/sbom.cdx.json\n{out}/licences.txt\n"
    assert create(tmp_path / "b", models, "--wheels-from", wheels).exit_code == 0
    packed: list[str | Path] = ["tar", "xf", tmp_path / "b", "sbom.cdx.json", "licences.txt"]
    subprocess.run(packed, cwd=tmp_path, check=True)
    for name in ("sbom.cdx.json", "licences.txt"):
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes()
