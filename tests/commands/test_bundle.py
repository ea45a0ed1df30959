from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import pytest

from server import __version__
from server.commands import progress
from tests.catalog import FILES, bundle_bytes, card_table, pins, variant_table, write_model
from tests.command_line import (
    PATIENCE_S,
    Outcome,
    assert_mistake,
    end,
    files_of_at_most,
    interruptible,
    run,
    start,
)
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.server_process import ServerProcess
from tests.wheels import write_wheel

Words = list[str | Path]

ROTATION = {"rotation.safetensors": b"a rotation"}


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    write_model(folder, card_table())
    write_model(folder, variant_table(files=pins(ROTATION)), ROTATION)
    return folder


@pytest.fixture
def bundle(models_dir: Path, tmp_path: Path) -> Path:
    outcome = run(
        *("bundle", "create", "variant", "-o", tmp_path / "b.bundle"), "--models-dir", models_dir
    )
    assert outcome.exit_code == 0, outcome.stderr
    return tmp_path / "b.bundle"


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """The models folder of software that came without any."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model and its base."""
    path = tmp_path_factory.mktemp("real") / "minilm.bundle"
    assert run("bundle", "create", MATRYOSHKA, "-o", path).exit_code == 0
    return path


@pytest.fixture(scope="module")
def large_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose reading takes long enough to be interrupted."""
    folder = tmp_path_factory.mktemp("large")
    files = {**FILES, "model.safetensors": bytes(200_000_000)}
    write_model(folder, card_table(files=pins(files)), files)
    return folder


@pytest.fixture(scope="module")
def large_bundle(large_models: Path) -> Path:
    path = large_models.with_suffix(".bundle")
    outcome = run("bundle", "create", "tiny", "-o", path, "--models-dir", large_models)
    assert outcome.exit_code == 0, outcome.stderr
    return path


def installation(bundle: Path, shipped: Path, data: Path) -> Words:
    return ["bundle", "install", bundle, "--models-dir", shipped, "--data-dir", data]


def wait_for(folder: Path, pattern: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def interrupted_by(ending: signal.Signals, folder: Path, pattern: str) -> Iterator[None]:
    """A command in here gets the signal as soon as it has put such a file there."""

    @contextlib.contextmanager
    def watched(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda _: signal.raise_signal(ending) if list(folder.glob(pattern)) else None

    with interruptible(), mock.patch.object(progress, "byte_progress", watched):
        yield


class TestCreate:
    def test_the_digest_is_printed_as_sha256sum_reads_it(
        self, models_dir: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "b"
        outcome = run("bundle", "create", "tiny", "-o", path, "--models-dir", models_dir)
        assert outcome.stdout == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path}\n"
        assert (outcome.stderr, outcome.exit_code) == ("", 0)
        subprocess.run(["sha256sum", "-c"], input=outcome.stdout, text=True, check=True)

    def test_the_same_models_give_the_same_bytes_in_another_place(
        self, bundle: Path, models_dir: Path, tmp_path: Path
    ) -> None:
        models_dir.rename(tmp_path / "elsewhere")
        arguments: Words = [
            "tiny",
            "variant",
            "-o",
            tmp_path / "c",
            "--models-dir",
            tmp_path / "elsewhere",
        ]
        assert run("bundle", "create", *arguments).exit_code == 0
        assert (tmp_path / "c").read_bytes() == bundle.read_bytes()

    def test_installed_models_can_be_bundled_again(
        self, bundle: Path, shipped: Path, tmp_path: Path
    ) -> None:
        run(*installation(bundle, shipped, tmp_path / "data"))
        folders: Words = ["--models-dir", shipped, "--data-dir", tmp_path / "data"]
        outcome = run("bundle", "create", "variant", "-o", tmp_path / "again", *folders)
        assert outcome.exit_code == 0, outcome.stderr
        assert (tmp_path / "again").read_bytes() == bundle.read_bytes()

    def test_mistakes_are_one_line(self, bundle: Path, models_dir: Path, tmp_path: Path) -> None:
        def create(*arguments: str | Path) -> Any:
            return run("bundle", "create", *arguments, "--models-dir", models_dir)

        assert_mistake(create("tinny", "-o", tmp_path / "c"), "tinny not found", "mean tiny?")
        assert_mistake(create("tiny", "-o", bundle), f"{bundle} exists; --force")
        assert_mistake(create("tiny", "-o", tmp_path / "no" / "c"), f"no folder {tmp_path / 'no'}")
        assert_mistake(create("tiny", "-o", tmp_path), "it is a folder")
        both: Words = ["--wheels", "--wheels-from", tmp_path]
        assert_mistake(create("tiny", "-o", tmp_path / "c", *both), "exclude each other")
        assert_mistake(create("tiny", "-o", tmp_path / "c", "--extra", "shared"), "needs --wheels")
        (models_dir / "tiny" / "graph.onnx").write_bytes(b"A graph")
        graph = str(models_dir / "tiny" / "graph.onnx")
        assert_mistake(create("tiny", "-o", tmp_path / "c"), graph)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.bundle", "models"]

    def test_without_the_option_nothing_is_replaced_and_with_it_the_file_is(
        self, bundle: Path, models_dir: Path
    ) -> None:
        before = bundle.read_bytes()
        arguments: Words = ["tiny", "-o", bundle, "--force", "--models-dir", models_dir]
        assert run("bundle", "create", *arguments).exit_code == 0
        assert bundle.read_bytes() != before

    def test_wheels_of_another_machine_come_from_a_folder(
        self, models_dir: Path, tmp_path: Path
    ) -> None:
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        own = write_wheel(wheels).name
        write_wheel(wheels, "numpy", "2.0", tag="cp313-cp313-win_arm64", in_dist_info={})
        arguments: Words = ["tiny", "-o", tmp_path / "b", "--wheels-from", wheels]
        outcome = run("bundle", "create", *arguments, "--models-dir", models_dir)
        assert outcome.exit_code == 0
        assert outcome.stderr == "no licence text comes with: numpy 2.0: MIT\n"
        shown = run("bundle", "show", tmp_path / "b").stdout
        assert own in shown
        assert "with Python 3.13 on" in shown

    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_one_leaves_no_file(
        self, models_dir: Path, tmp_path: Path, ending: signal.Signals
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        with interrupted_by(ending, out, ".b.*.partial"):
            outcome = run("bundle", "create", "tiny", "-o", out / "b", "--models-dir", models_dir)
        assert outcome == Outcome(128 + ending, "", "")
        assert list(out.iterdir()) == []

    def test_ctrl_c_ends_its_process_and_leaves_no_file(
        self, large_models: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "out"
        out.mkdir()
        with start(
            "bundle", "create", "tiny", "-o", out / "b", "--models-dir", large_models
        ) as creating:
            wait_for(out, ".b.*.partial")
            outcome = end(creating, signal.SIGINT)
        assert outcome == Outcome(130, "", "")
        assert list(out.iterdir()) == []


class TestShow:
    def test_it_tells_what_is_inside_and_what_to_type(self, bundle: Path) -> None:
        outcome = run("bundle", "show", bundle)
        assert (outcome.exit_code, outcome.stderr) == (0, "")
        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
        weights = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
        wanted = [
            f"embedding-server {__version__}",
            f"sha256 {digest}",
            "\nnot signed\n",
            "  sbom.cdx.json\n",
            "  licences.txt\n",
            "model tiny, ",
            "model variant, ",
            f"{weights}  model.safetensors",
            f"embedding-server bundle install {bundle}",
        ]
        assert [text for text in wanted if text not in outcome.stdout] == []

    def test_the_approved_digest_is_compared(self, bundle: Path) -> None:
        digest = hashlib.sha256(bundle.read_bytes()).hexdigest()
        assert run("bundle", "show", bundle, "--sha256", digest).exit_code == 0
        wrong = run("bundle", "show", bundle, "--sha256", "0" * 64)
        assert_mistake(wrong, f"has sha256 {digest}, not the approved 000")
        assert_mistake(run("bundle", "show", bundle, "--sha256", "0x1"), "64 hexadecimal")

    def test_what_is_no_bundle_is_one_line(self, tmp_path: Path) -> None:
        assert_mistake(run("bundle", "show", tmp_path / "no"), f"{tmp_path / 'no'} does not exist")
        assert_mistake(run("bundle", "show", tmp_path), "is no regular file")
        os.mkfifo(tmp_path / "pipe")
        assert_mistake(run("bundle", "show", tmp_path / "pipe"), "is no regular file")
        (tmp_path / "empty").touch()
        assert_mistake(run("bundle", "show", tmp_path / "empty"), "is no bundle")
        assert_mistake(run("bundle", "show", REPOSITORY / "README.md"), "is no bundle")
        (tmp_path / "evil").write_bytes(bundle_bytes({"models/../../x": b"x"}))
        assert_mistake(run("bundle", "show", tmp_path / "evil"), "models/../../x")


class TestInstall:
    def test_each_model_gets_a_line(self, bundle: Path, shipped: Path, tmp_path: Path) -> None:
        data = tmp_path / "data"
        first = run(*installation(bundle, shipped, data))
        assert first.stdout.splitlines() == [
            "not signed",
            f"tiny: installed in {data}/models/tiny",
            f"variant: installed in {data}/models/variant",
        ]
        assert (first.stderr, first.exit_code) == ("", 0)
        again = run(*installation(bundle, shipped, data))
        assert again.stdout.count(": already installed in ") == 2
        assert data.stat().st_mode & 0o777 == 0o700  # keys will lie there too

    def test_refusals_are_one_line(
        self, bundle: Path, shipped: Path, models_dir: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        install = installation(bundle, shipped, data)
        assert_mistake(run(*install, "--sha256", "f" * 64), "not the approved ffff")
        assert list((data / "models").iterdir()) == []
        cut = tmp_path / "cut"
        cut.write_bytes(bundle.read_bytes()[:-1])
        assert_mistake(run(*installation(cut, shipped, data)), f"{cut} is cut off")
        write_model(data / "models", card_table(embedding_dim=16))
        assert_mistake(run(*install), "tiny is installed with other content", "--replace")
        assert run(*install, "--replace").exit_code == 0

    def test_a_data_folder_that_cannot_be_made_is_named(
        self, bundle: Path, shipped: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "file").touch()
        outcome = run(*installation(bundle, shipped, tmp_path / "file" / "data"))
        assert_mistake(outcome, f"data_dir {tmp_path / 'file' / 'data'}", "Not a directory")

    def test_a_disk_that_fills_up_leaves_nothing(
        self, bundle: Path, shipped: Path, tmp_path: Path
    ) -> None:
        data = tmp_path / "data"
        with files_of_at_most(200):
            outcome = run(*installation(bundle, shipped, data))
        assert_mistake(outcome, f"cannot install into {data}/models: File too large")
        assert list((data / "models").iterdir()) == []

    @pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupted_one_has_installed_nothing_and_can_be_repeated(
        self, bundle: Path, tmp_path: Path, shipped: Path, ending: signal.Signals
    ) -> None:
        data = tmp_path / "data"
        with interrupted_by(ending, data, "models/.new-*/new/tiny/model.safetensors"):
            outcome = run(*installation(bundle, shipped, data))
        assert outcome.exit_code == 128 + ending
        assert list((data / "models").iterdir()) == []
        assert run(*installation(bundle, shipped, data)).exit_code == 0
        assert sorted(path.name for path in (data / "models").iterdir()) == ["tiny", "variant"]

    @pytest.mark.slow
    def test_a_killed_one_has_installed_nothing_and_can_be_repeated(
        self, large_bundle: Path, tmp_path: Path, shipped: Path
    ) -> None:
        data = tmp_path / "data"
        with start(*installation(large_bundle, shipped, data)) as installing:
            wait_for(data, "models/.new-*/new/tiny/model.safetensors")
            assert end(installing, signal.SIGKILL).exit_code == -signal.SIGKILL
        assert list((data / "models").glob("[!.]*")) == []
        assert run(*installation(large_bundle, shipped, data)).exit_code == 0
        assert [path.name for path in (data / "models").iterdir()] == ["tiny"]

    @pytest.mark.server
    def test_a_server_serves_what_was_installed_where_no_model_came_with_the_software(
        self, real_bundle: Path, shipped: Path, tmp_path: Path, server: ServerProcess
    ) -> None:
        data = tmp_path / "data"
        outcome = run(*installation(real_bundle, shipped, data))
        assert outcome.exit_code == 0, outcome.stderr
        flags = ["--models-dir", str(shipped), "--data-dir", str(data)]
        with ServerProcess(*flags) as installed:
            for model in (PLAIN, MATRYOSHKA):
                body = {"model": model, "input": "Grüß Gott", "encoding_format": "base64"}
                answers = [
                    httpx.post(f"{each.base_url}/embeddings", json=body).json()
                    for each in (installed, server)
                ]
                assert answers[0]["data"] == answers[1]["data"]

    @pytest.mark.slow
    def test_one_file_and_python_are_enough(self, models_dir: Path, tmp_path: Path) -> None:
        path, data, key = tmp_path / "all.bundle", tmp_path / "data", tmp_path / "maker"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        (tmp_path / "trusted").write_text(f"maker {key.with_suffix('.pub').read_text()}")
        words: Words = ["variant", "--wheels", "-o", path, "--models-dir", models_dir]
        outcome = run("bundle", "create", *words, "--sign", key)
        assert outcome.exit_code == 0, outcome.stderr
        subprocess.run(["tar", "xf", path, "wheels", "sbom.cdx.json"], cwd=tmp_path, check=True)
        listed = json.loads((tmp_path / "sbom.cdx.json").read_text())
        wheels = {f"wheels/{wheel.name}" for wheel in (tmp_path / "wheels").iterdir()}
        (own,) = wheels - {each["bom-ref"] for each in listed["components"]}
        assert own.startswith("wheels/embedding_server-")
        subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
        bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
        pip: Words = [tmp_path / "venv/bin/pip", "install", "--quiet", "--no-index", "--find-links"]
        subprocess.run(
            [*pip, tmp_path / "wheels", "embedding-server"], env=bare, cwd=tmp_path, check=True
        )
        installed: Words = [tmp_path / "venv/bin/embedding-server"]

        def there(*arguments: str | Path) -> str:
            return subprocess.run(
                [*installed, *arguments, "--data-dir", data],
                env=bare,
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        there("bundle", "install", path, "--trust", tmp_path / "trusted")
        assert there("models", "verify", "variant").startswith("variant: 4 files")
