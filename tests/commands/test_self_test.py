"""The self-test finds what is wrong and says so, line by line."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save

from server.catalog.card import FilePin
from server.catalog.card_file import read_card, write_card
from server.commands import network_namespace, self_test
from server.commands.self_test import available_bytes
from server.errors import SettingError
from server.inference.cpu_instructions import quick_dtypes
from tests.command_line import PATIENCE_S, Outcome, run
from tests.conftest import MATRYOSHKA, PLAIN, REPOSITORY
from tests.test_offline import namespace_command

SPIES = """
import socket
datagrams = socket.socket(type=socket.SOCK_DGRAM)
for attempt in (
    lambda: datagrams.sendto(b"?", ("127.0.0.53", 53)),
    lambda: datagrams.sendto(b"?", ("192.0.2.1", 53)),
    lambda: socket.create_connection(("192.0.2.1", 80), 1),
):
    try:
        attempt()
    except OSError:
        pass
"""


def doctor(*flags: str | Path) -> Outcome:
    return run("doctor", *flags)


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    """The shipped models, free to be broken."""
    place = tmp_path / "models"
    for name in (PLAIN, MATRYOSHKA):
        shutil.copytree(REPOSITORY / "models" / name, place / name)
    return place


def test_a_sound_installation_passes_line_by_line() -> None:
    outcome = doctor()
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert all(line.startswith("ok ") for line in lines)
    for expected in ("software: embedding-server", "cores usable", "GB available"):
        assert sum(expected in line for line in lines) == 1
    for name in (PLAIN, MATRYOSHKA):
        assert sum(f"  {name}: " in line for line in lines) == 2
    assert sum("reference vectors: smallest cosine 1.0000" in line for line in lines) == 2


def test_what_computes_in_another_dtype_is_named_with_its_version() -> None:
    outcome = doctor("--dtype", "int8", "--device", "cpu", "--model", PLAIN)
    if "int8" not in quick_dtypes():
        assert "no instructions for int8" in outcome.stderr
        return
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert f", openvino {version('openvino')}\n" in outcome.stdout
    assert "(int8 on cpu)" in outcome.stdout


def test_a_library_that_nobody_knows_the_version_of_ends_no_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def known(package: str) -> str:
        if package == "tokenizers":  # its folder lies there, without its papers
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(self_test, "version", known)
    outcome = doctor("--model", PLAIN)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert ", tokenizers of unknown version, numpy " in outcome.stdout


def test_a_changed_byte_is_found_and_hides_no_other_check(models_dir: Path) -> None:
    tokenizer = models_dir / PLAIN / "tokenizer.json"
    content = tokenizer.read_bytes()
    tokenizer.write_bytes(content.replace(b"quick", b"quack", 1))
    outcome = doctor("--models-dir", models_dir, "--model", PLAIN, "--model", MATRYOSHKA)
    assert outcome.exit_code == 2
    bad = [line for line in outcome.stdout.splitlines() if line.startswith("BAD")]
    assert len(bad) == 4  # files and vectors of both models
    assert all(str(tokenizer) in line for line in bad)
    assert outcome.stderr == "embedding-server: 4 of the checks failed\n"


def test_a_missing_file_is_found(models_dir: Path) -> None:
    (models_dir / PLAIN / "graph.onnx").unlink()
    outcome = doctor("--models-dir", models_dir, "--model", PLAIN)
    assert outcome.exit_code == 2
    assert f"BAD  {PLAIN}: model {PLAIN}: missing or incomplete: {PLAIN}/graph.onnx" in (
        outcome.stdout
    )


def test_vectors_unlike_the_reference_are_found(models_dir: Path) -> None:
    """As a processor that computes wrongly would give: all files right, other vectors."""
    folder = models_dir / PLAIN
    card = read_card(folder, models_dir)
    turned = load_file(folder / "reference.safetensors")["embeddings"][:, ::-1].copy()
    content = save({"embeddings": turned})
    pin = FilePin(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    (folder / "reference.safetensors").write_bytes(content)
    write_card(card.changed(files=card.files | {"reference.safetensors": pin}), folder)
    outcome = doctor("--models-dir", models_dir, "--model", PLAIN)
    assert outcome.exit_code == 2
    (bad,) = [line for line in outcome.stdout.splitlines() if line.startswith("BAD")]
    assert "reference vectors: smallest cosine" in bad


def test_the_witness_is_asked_where_that_is_wished(models_dir: Path) -> None:
    sound = "witness (bert in numpy): 6 texts: smallest cosine 1.0000000, largest difference "
    outcome = doctor("--model", PLAIN, "--witness")
    assert outcome.exit_code == 0
    assert outcome.stdout.splitlines()[-1].startswith(f"ok   {PLAIN}: {sound}")
    # Its graph, and with it the reference, are as they were: only the witness reads the setting.
    card = read_card(models_dir / PLAIN, models_dir)
    config = models_dir / PLAIN / "config.json"
    config.write_text(config.read_text().replace('"gelu"', '"relu"'))
    pin = FilePin(
        bytes=config.stat().st_size, sha256=hashlib.sha256(config.read_bytes()).hexdigest()
    )
    (models_dir / PLAIN / "card.toml").unlink()
    files = card.files | {"config.json": pin}
    write_card(card.changed(files=files), models_dir / PLAIN)
    outcome = doctor("--model", PLAIN, "--witness", "--models-dir", models_dir)
    assert outcome.exit_code == 2
    assert f"BAD  {PLAIN}: witness (bert in numpy): 6 texts: smallest cosine 0." in outcome.stdout
    assert "1 of the checks failed" in outcome.stderr
    assert "witness" not in doctor("--model", PLAIN).stdout


def test_more_threads_than_cores_are_told() -> None:
    outcome = doctor("--threads", "1000")
    assert outcome.exit_code == 2
    assert "BAD  processor: " in outcome.stdout


def doctor_offline(cwd: Path, **variables: str) -> Outcome:
    """`doctor --offline` as a process, since it leaves its network for good."""
    namespace_command()  # skips where nobody may make one, never in CI
    command = "from server.commands.cli import main; main()"
    outcome = subprocess.run(
        [sys.executable, "-P", "-c", command, "doctor", "--offline", "--model", PLAIN],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


@pytest.mark.slow
def test_offline_proves_that_serving_stays_on_this_machine_whatever_is_set_for_others(
    tmp_path: Path,
) -> None:
    """Keys, a database, a proxy and a folder called as this package are none of its business."""
    (tmp_path / "server").mkdir()
    for file in ("__init__.py", "__main__.py"):
        (tmp_path / "server" / file).write_text("raise SystemExit('another server')")
    variables = {
        "EMBEDDING_SERVER_API_KEY": "sk-abc",
        "EMBEDDING_SERVER_DATABASE_URL": "postgresql://user@192.0.2.1/keys",
        "http_proxy": "http://192.0.2.1:3128",
    }
    outcome = doctor_offline(tmp_path, **variables)
    assert outcome.exit_code == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.splitlines()[-1] == (
        "ok   offline: served 1 vector where only loopback exists; nothing tried to leave"
    )


def test_offline_without_the_right_to_be_oneself_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on Ubuntu 24.04: the namespace is given, its user is not."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    library = SimpleNamespace(unshare=lambda _: 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: library)
    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(SettingError, match=r"--offline: .*Operation not permitted"):
        network_namespace.enter_network_namespace()


@pytest.mark.slow
def test_offline_counts_who_tries_to_leave_or_asks_for_a_name(tmp_path: Path) -> None:
    """A module that every Python start imports stands for a library that reports home.

    systemd's resolver is on loopback, from where it would ask the world.
    """
    (tmp_path / "sitecustomize.py").write_text(SPIES)
    outcome = doctor_offline(tmp_path, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert outcome.exit_code == 2
    assert "BAD  offline: 3 attempts to leave this machine" in outcome.stdout


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  100 kB\n"}, 102_400),
        (
            {
                "proc/meminfo": "MemAvailable: 100 kB\n",
                "sys/fs/cgroup/memory.max": "5000\n",
                "sys/fs/cgroup/memory.current": "2000\n",
            },
            3000,
        ),
        (
            {
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "2000\n",
            },
            None,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9000",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "8000",
            },
            1000,
        ),
    ],
)
def test_available_memory_is_the_machines_and_the_containers(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_bytes(tmp_path) == expected
