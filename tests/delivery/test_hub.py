"""Models come from a hub at one commit, through a mirror, and what was fetched stays fetched."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest

from server.catalog.card_file import read_card
from server.catalog.sources import HubSource
from server.delivery.hub import downloaded, not_fetched
from server.errors import ModelFileError
from tests.delivery.test_pull import Hub
from tests.importing.folders import make_folder
from tests.server_process import ServerProcess

COMMIT = "c" * 40
REPOSITORY = "intfloat/e5-small-v2"


class WholeHub(Hub):
    """Also tells a repository's commit and files, and lets connections break."""

    listing: ClassVar[list[dict[str, object]]]
    broken: ClassVar[set[str]]
    proxied: ClassVar[list[str]]

    def do_HEAD(self) -> None:  # noqa: N802
        self._enter()
        super().do_HEAD()

    def do_GET(self) -> None:  # noqa: N802
        self._enter()
        path = urlsplit(self.path).path
        revisions = {f"/api/models/{REPOSITORY}/revision/{name}" for name in ("v1", COMMIT)}
        if path in {f"/api/models/{REPOSITORY}", *revisions}:
            self._tell({"id": REPOSITORY, "sha": COMMIT, "siblings": self._siblings()})
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/"):
            self._tell(self.listing)
        elif path in self.broken:
            self.asked.append(f"GET {path} broken")
            content = self.files[path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        else:
            super().do_GET()

    def _enter(self) -> None:
        """A client that takes this for its proxy asks with the address of the hub in front."""
        whole = urlsplit(self.path)
        if whole.netloc:
            self.proxied.append(whole.netloc)
            self.path = whole._replace(scheme="", netloc="").geturl()

    def _siblings(self) -> list[dict[str, object]]:
        return [{"rfilename": entry["path"]} for entry in self.listing]

    def _tell(self, content: object) -> None:
        self.asked.append(f"GET {self.path}")
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class HubProcess:
    """A hub that holds one repository."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.prefix = f"/{REPOSITORY}/resolve/{COMMIT}/"
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.proxied: list[str] = []
        listing = [
            {"type": "file", "path": name, "size": len(body), "oid": "0" * 40}
            for name, body in files.items()
        ]
        paths = {self.prefix + name: body for name, body in files.items()}
        fields = {"files": paths, "asked": self.asked, "listing": listing}
        fields |= {"broken": self.broken, "proxied": self.proxied}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (WholeHub,), fields))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self) -> list[str]:
        """The files of the repository that were asked for, in order."""
        start = f"GET {self.prefix}"
        return [line.removeprefix(start) for line in self.asked if line.startswith(start)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    folder = make_folder(tmp_path / "made")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files |= {"README.md": b"---\nlicense: mit\n---\n", "pytorch_model.bin": b"not wanted"}
    running = HubProcess(files)
    thread = threading.Thread(target=running.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield running
    finally:
        running.server.shutdown()
        thread.join()
        running.server.server_close()


def pull(
    hub: HubProcess, tmp_path: Path, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "models", "pull", *arguments]
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hub-home"),
        "EMBEDDING_SERVER_DATA_DIR": str(tmp_path / "data"),
        **variables,
    }
    return subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_a_model_of_the_hub_is_fetched_at_one_commit_imported_and_served(
    hub: HubProcess, tmp_path: Path
) -> None:
    outcome = pull(hub, tmp_path, REPOSITORY)
    assert outcome.returncode == 0, outcome.stderr
    assert f"fetching {REPOSITORY}@{COMMIT[:12]}" in outcome.stdout
    models = tmp_path / "data" / "models"
    card = read_card(models / "e5-small-v2", models)
    assert (card.owned_by, card.license) == ("intfloat", "mit")
    assert card.prompts == {"query": "query: ", "document": "passage: "}
    (source,) = card.sources
    assert isinstance(source, HubSource)
    assert (source.repository, source.revision) == (REPOSITORY, COMMIT)
    assert source.files == ("model.safetensors", "tokenizer.json")
    assert "pytorch_model.bin" not in hub.fetched()
    assert not list((tmp_path / "data" / "downloads").iterdir())
    flags = ("--data-dir", str(tmp_path / "data"), "--model", "e5-small-v2")
    with ServerProcess(*flags) as server:
        assert server.ready_line


def test_everything_goes_through_a_proxy_that_the_environment_names(
    hub: HubProcess, tmp_path: Path
) -> None:
    variables = {"HF_ENDPOINT": "http://hub.example", "HTTP_PROXY": hub.url, "NO_PROXY": ""}
    outcome = pull(hub, tmp_path, REPOSITORY, **variables)
    assert outcome.returncode == 0, outcome.stderr
    assert set(hub.proxied) == {"hub.example"}
    assert len(hub.proxied) == len(hub.asked)


def test_a_file_lost_later_comes_back_from_the_same_commit(hub: HubProcess, tmp_path: Path) -> None:
    assert pull(hub, tmp_path, REPOSITORY, "--revision", "v1", "--name", "mine").returncode == 0
    weights = tmp_path / "data" / "models" / "mine" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    outcome = pull(hub, tmp_path, "mine")
    assert outcome.returncode == 0, outcome.stderr
    assert weights.read_bytes() == content


def test_what_was_fetched_before_a_failure_is_not_fetched_again(
    hub: HubProcess, tmp_path: Path
) -> None:
    hub.broken.add(hub.prefix + "model.safetensors")
    failed = pull(hub, tmp_path, REPOSITORY)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith(f"embedding-server: {REPOSITORY}: ")
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "data" / "models").exists()
    before = set(hub.fetched())
    assert "tokenizer.json" in before
    hub.asked.clear()
    hub.broken.clear()
    assert pull(hub, tmp_path, REPOSITORY).returncode == 0
    again = set(hub.fetched())
    assert "model.safetensors" in again
    assert "tokenizer.json" not in again


def test_a_model_that_is_there_is_refused_before_anything_is_fetched(
    hub: HubProcess, tmp_path: Path
) -> None:
    (tmp_path / "data" / "models" / "e5-small-v2").mkdir(parents=True)
    outcome = pull(hub, tmp_path, REPOSITORY)
    assert outcome.returncode == 2
    assert "model e5-small-v2 is there already" in outcome.stderr
    assert hub.asked == []


@pytest.mark.parametrize("arguments", [["org/absent"], [REPOSITORY, "--revision", "absent"]])
def test_what_the_hub_does_not_have_is_told_in_one_line(
    hub: HubProcess, tmp_path: Path, arguments: list[str]
) -> None:
    outcome = pull(hub, tmp_path, *arguments)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1].startswith(f"embedding-server: {arguments[0]}: ")
    assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("commit", ["../../../elsewhere", "main", ""])
def test_a_commit_that_is_none_is_refused_before_it_names_a_folder(
    hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str
) -> None:
    monkeypatch.setattr(f"{__name__}.COMMIT", commit)
    outcome = pull(hub, tmp_path, REPOSITORY)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1].startswith(f"embedding-server: {REPOSITORY}: the hub")
    assert hub.fetched() == []


@pytest.fixture
def into(hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where downloads go that this process makes from the hub of this test."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    files = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    return tmp_path / "downloads"


def test_a_download_is_kept_for_another_try_until_it_was_imported(
    hub: HubProcess, into: Path
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        downloaded(REPOSITORY, None, into, lambda _: None, with_graph=False),
    ):
        raise KeyboardInterrupt
    hub.asked.clear()
    with downloaded(REPOSITORY, None, into, lambda _: None, with_graph=False) as (folder, commit):
        assert (folder / "model.safetensors").is_file()
        assert commit == COMMIT
    assert hub.fetched() == []
    assert list(into.iterdir()) == []


def test_of_two_pulls_of_one_model_the_second_is_refused(hub: HubProcess, into: Path) -> None:
    first = downloaded(REPOSITORY, None, into, lambda _: None, with_graph=False)
    second = downloaded(REPOSITORY, None, into, lambda _: None, with_graph=False)
    with first as (folder, _):
        with pytest.raises(ModelFileError, match=f"another process is fetching it into {folder}"):
            second.__enter__()
        assert (folder / "model.safetensors").is_file()


def test_a_hub_out_of_reach_is_named_with_the_variable_that_names_another(
    into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nothing listens there
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://me:secret@{host}")
        with pytest.raises(ModelFileError) as refused:
            downloaded(REPOSITORY, None, into, lambda _: None, with_graph=False).__enter__()
    assert refused.value.message == (
        f"{REPOSITORY}: not fetched from {host} (HF_ENDPOINT names another hub): "
        "[Errno 111] Connection refused"
    )


def test_the_networks_own_words_are_the_reason() -> None:
    try:
        try:
            raise ConnectionError("Name or service not known")
        except ConnectionError as error:
            raise FileNotFoundError("cannot be located; please check your connection") from error
    except FileNotFoundError as error:
        message = not_fetched("org/tiny", error)
    assert message.startswith("org/tiny: not fetched from ")
    assert message.endswith(": Name or service not known")
