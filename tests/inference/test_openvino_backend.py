"""bfloat16 and int8 on a CPU: the model's vectors, and the same bits in any company.

On a processor without the instructions each test asserts the refusal instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from server.catalog.card import GRAPH_FILE, Card, Dtype
from server.catalog.cpu_precision import CpuDtype
from server.catalog.int8_recipe import Int8Recipe
from server.errors import ModelLoadError
from server.inference.backend import LoadOptions, OutOfMemory, TokenIds
from server.inference.direct import embed_texts
from server.inference.loader import Encoder, load_encoder
from server.inference.openvino_backend import OpenvinoBackend, _count_rows, _Form
from server.inference.openvino_library import CORE, last_line, ops, ov
from server.inference.placement import find_placement
from server.inference.pooling import cosines
from tests.conftest import REPOSITORY
from tests.low_precision import is_refused

WORDS = range(1_000, 30_000)  # of the vocabulary, none with a meaning of its own
VOCABULARY = 30_522
LEAST_COSINES = {"bfloat16": 0.9999, "int8": 0.99}
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "What is the capital of France?",
    "¿Dónde está la biblioteca? 42",
    "Shares of the company fell by nine per cent on Tuesday after it had warned of lower sales. "
    * 4,
    "x",
]


@pytest.fixture(scope="module")
def encoders(plain_card: Card) -> dict[Dtype, Encoder]:
    """Of each dtype in which this processor is quick."""
    options = LoadOptions(wide_threads=2, worker_threads=2)
    return {
        dtype: load_encoder(plain_card, find_placement("cpu", dtype), options, hash_files=False)
        for dtype in get_args(CpuDtype)
        if not is_refused(dtype)
    }


def sequence(tokens: int, seed: int) -> TokenIds:
    ids = np.random.default_rng((tokens, seed)).choice(WORDS, tokens).astype(np.int32)
    ids[0] = 101
    return ids


def batches(count: int, sizes: tuple[int, ...]) -> Iterator[NDArray[np.intp]]:
    """Every one of `count` places once with each size, in mixed order."""
    for size in sizes:
        order = np.random.default_rng(size).permutation(count)
        yield from (order[start : start + size] for start in range(0, count, size))


def test_the_vectors_are_the_models_as_near_as_the_numbers_allow(
    encoder: Encoder, encoders: dict[Dtype, Encoder]
) -> None:
    exact = embed_texts(encoder, TEXTS)
    for dtype, computed in encoders.items():
        vectors = embed_texts(computed, TEXTS)
        assert (vectors.dtype.name, vectors.shape) == ("float32", exact.shape)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert cosines(vectors, exact).min() > LEAST_COSINES[dtype]
        # And it is that dtype which computes: float32 is far nearer, and int8 is not bfloat16.
        assert cosines(vectors, exact).min() < (0.999999 if dtype == "bfloat16" else 0.9998)


def test_a_text_has_the_same_bits_alone_in_any_company_and_on_any_number_of_cores(
    encoders: dict[Dtype, Encoder],
) -> None:
    lengths = [1, 2, 7, 8, 9, 15, 16, 17, 31, 60, 100, 12, 12, 5, 3, 26, 40, 8, 9, 20]
    texts = [sequence(tokens, seed) for seed, tokens in enumerate(lengths)]
    for encoder in encoders.values():
        (backend,) = encoder.backends
        alone = np.concatenate([backend.forward([text]) for text in texts])

        def together(places: NDArray[np.intp], wide: bool) -> NDArray[np.float32]:
            return backend.forward([texts[place] for place in places], alone=wide)  # noqa: B023

        for places in batches(len(texts), (1, 5, 16)):
            assert together(places, True).tobytes() == alone[places].tobytes()
        with ThreadPoolExecutor(2) as threads:
            companies = list(batches(len(texts), (2, 3, 8)))
            for places, found in zip(
                companies, threads.map(lambda some: together(some, False), companies), strict=True
            ):
                assert found.tobytes() == alone[places].tobytes()


@pytest.mark.parametrize(
    "ids", [[101, VOCABULARY], [101, 2**31 - 1], [-1, 101], [101] * 257], ids=str
)
def test_what_the_tables_have_no_row_for_is_not_computed(
    encoders: dict[Dtype, Encoder], ids: list[int]
) -> None:
    for encoder in encoders.values():
        with pytest.raises(ValueError, match=r"token id is none of 0 to 30521|longer than 256"):
            encoder.backends[0].forward([sequence(3, 0), np.array(ids, np.int32)])
        assert encoder.num_embeddings is None
        assert encoder.backends[0].count_embeddings(VOCABULARY + 5) == VOCABULARY
        assert encoder.backends[0].count_embeddings(7) == 7


class Failing:
    """A request whose pass fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def infer(self, feeds: object, *, share_inputs: bool) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (MemoryError(), OutOfMemory),
        (RuntimeError("Exception from src/inference: std::bad_alloc"), OutOfMemory),
        (RuntimeError("Can not allocate 4 GB"), OutOfMemory),
        (
            RuntimeError(
                "Check 'ptr' failed at src/a.cpp:5:\nFailed to allocate 96 bytes of memory"
            ),
            OutOfMemory,
        ),
        (RuntimeError("Cannot allocate memory"), OutOfMemory),  # of the system
        (RuntimeError("shapes do not fit"), RuntimeError),
        (RuntimeError("Exception from src/memory_allocator.cpp:7:\nIt is wide."), RuntimeError),
        (RuntimeError("Cannot allocate memory for incompatible descriptors."), RuntimeError),
        (RuntimeError("Failed to allocate aux GPR"), RuntimeError),
    ],
)
def test_a_pass_without_memory_is_told_and_a_request_that_failed_is_not_used_again(
    encoders: dict[Dtype, Encoder], error: Exception, seen: type[Exception]
) -> None:
    for encoder in encoders.values():
        (backend,) = encoder.backends
        assert isinstance(backend, OpenvinoBackend)
        backend._narrow._idle.append(Failing(error))
        with pytest.raises(seen) as raised:
            backend.forward([sequence(3, 0)])
        assert "\n" not in str(raised.value)
        assert raised.type is seen
        assert np.isfinite(backend.forward([sequence(3, 0)])).all()
        assert backend._narrow._idle  # one that did not fail is


def test_a_graph_that_is_none_is_named(tmp_path: Path) -> None:
    graph = tmp_path / GRAPH_FILE
    graph.write_bytes(b"no graph")
    with pytest.raises(ModelLoadError, match=f"^graph {graph}: Unable to read the model"):
        OpenvinoBackend(graph, max_input_tokens=8)


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Exception from src/core.cpp:117:\nCheck 'n' failed at a.cpp:5:\nIt is wide.\n\n\n", "It is wide."),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_of_an_error_that_names_places_in_the_source_first_the_reason_is_told(
    said: str, line: str
) -> None:
    assert last_line(RuntimeError(said)) == line


TABLE = np.random.default_rng(2).standard_normal((50, 64)).astype(np.float32)
DENSE = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32) / 8


def published(
    folder: Path,
    *,
    looks_up: bool = True,
    output: str = "last_hidden_state",
    floats: type[np.floating] = np.float32,
    rows_axis: int = 0,
    unused_lookup: ov.PartialShape | None = None,
) -> Path:
    """A publisher's graph that gives token vectors and asks for token types."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [ops.parameter([-1, -1], np.int64, name=name) for name in names]
    for node in inputs:
        node.output(0).set_names({node.friendly_name})
    stored = TABLE if rows_axis == 0 else np.ascontiguousarray(TABLE.T)
    table, axis = ops.constant(stored.astype(floats)), ops.constant(np.array(rows_axis))
    dense = ops.constant(DENSE.astype(floats))
    ids = ops.convert(inputs[0] if looks_up else inputs[2], "i32")
    found = ops.gather(table, ids, axis)
    if rows_axis:
        found = ops.transpose(found, ops.constant(np.array([1, 2, 0])))
    hidden = ops.tanh(ops.matmul(found, dense, False, False))
    hidden.output(0).set_names({output})
    unused = ops.unsqueeze(ops.convert(inputs[1], "f32"), ops.constant(np.array(2)))
    if unused_lookup is not None:
        inputs.append(ops.parameter(unused_lookup, np.float32, name="elsewhere"))
        unused = ops.gather(inputs[-1], ids, ops.constant(np.array(0)))
    unused.output(0).set_names({"unused"})
    path = folder / "graph.xml"
    ov.save_model(ov.Model([unused, hidden], inputs, "published"), path, compress_to_fp16=False)
    return path


@pytest.mark.parametrize("floats", [np.float32, np.float16])
@pytest.mark.parametrize("recipe", [None, Int8Recipe()], ids=["bfloat16", "int8"])
def test_a_publishers_graph_is_pooled_and_normalised_here(
    tmp_path: Path, recipe: Int8Recipe | None, floats: type[np.floating]
) -> None:
    if is_refused("bfloat16" if recipe is None else "int8"):
        return
    graph = published(tmp_path, floats=floats)
    texts = [np.array(ids, np.int32) for ids in ([3, 4, 5], [7], [49, 0, 1, 2, 3, 4, 5, 6, 7])]
    expected = [np.tanh(TABLE[ids].astype(np.float64) @ DENSE).mean(axis=0) for ids in texts]
    backend = OpenvinoBackend(graph, max_input_tokens=10, recipe=recipe, normalized=True)
    found = backend.forward(texts)
    wide = np.array(expected, np.float32)
    assert cosines(found, wide).min() > (0.9999 if recipe is None else 0.999)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert backend.count_embeddings(1_000) == 50
    plain = OpenvinoBackend(graph, max_input_tokens=10, recipe=recipe, pooling="cls")
    first = np.array([np.tanh(TABLE[ids[0]].astype(np.float64) @ DENSE) for ids in texts])
    np.testing.assert_allclose(plain.forward(texts), first, atol=0.05)


def test_a_text_is_padded_by_its_own_length_and_never_beyond_what_the_model_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of positions has no row behind the longest text."""
    if is_refused("bfloat16"):
        return
    backend = OpenvinoBackend(published(tmp_path), max_input_tokens=9)
    shapes: list[tuple[int, ...]] = []
    run = backend._narrow.run

    def seen(feeds: list[NDArray[np.int64]]) -> NDArray[np.float32]:
        shapes.append(feeds[0].shape)
        return run(feeds)

    monkeypatch.setattr(backend._narrow, "run", seen)
    backend.forward([np.ones(tokens, np.int32) for tokens in (9, 1, 8, 9, 3)])
    assert sorted(shapes) == [(2, 9), (3, 8)]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"looks_up": False}, "has no table that input_ids are looked up in"),
        ({"output": "logits"}, "gives none of embeddings"),
    ],
)
def test_a_graph_that_cannot_be_served_safely_says_why(
    tmp_path: Path, change: dict[str, Any], line: str
) -> None:
    with pytest.raises(ModelLoadError, match=line):
        OpenvinoBackend(published(tmp_path, **change), max_input_tokens=8)


def test_a_signal_finds_its_stack_when_another_thread_has_let_a_model_go(tmp_path: Path) -> None:
    """What loads OpenVINO's plugin has a signal stack from it, which goes with the plugin."""
    if is_refused("bfloat16"):
        return
    script = """
import gc, signal, sys, threading
from pathlib import Path
from server.inference.openvino_backend import OpenvinoBackend

models = [OpenvinoBackend(Path(sys.argv[1]), max_input_tokens=9)]
letting_go = threading.Thread(target=lambda: (models.clear(), gc.collect()))
letting_go.start()
letting_go.join()
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", script, str(published(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n")


@pytest.mark.parametrize("axis", [1, -1])
def test_a_table_has_as_many_rows_as_the_axis_that_ids_look_up(tmp_path: Path, axis: int) -> None:
    if is_refused("bfloat16"):
        return
    backend = OpenvinoBackend(published(tmp_path, rows_axis=axis), max_input_tokens=10)
    assert backend.count_embeddings(1_000) == 50
    expected = np.tanh(TABLE[[3, 49]] @ DENSE).mean(axis=0, keepdims=True)
    assert cosines(backend.forward([np.array([3, 49], np.int32)]), expected).min() > 0.9999


def test_what_has_any_number_of_axes_is_no_table(tmp_path: Path) -> None:
    graph = published(tmp_path, unused_lookup=ov.PartialShape.dynamic())
    assert _count_rows(CORE.read_model(graph)) == 50


def test_what_openvino_throws_while_a_graph_is_made_ready_is_said_of_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(model: object) -> int:
        raise RuntimeError("Check 'n' failed at a.cpp:5:\nIt is wide.")

    monkeypatch.setattr("server.inference.openvino_backend.count_weights", refuses)
    graph = published(tmp_path)
    with pytest.raises(ModelLoadError, match=f"^graph {graph}: It is wide.$"):
        OpenvinoBackend(graph, max_input_tokens=8)


def test_a_pattern_that_keeps_nothing_is_said_of_the_graph(tmp_path: Path) -> None:
    graph = published(tmp_path)
    with pytest.raises(ModelLoadError, match=f"^graph {graph}: int8.keep: .* named 'typo'$"):
        OpenvinoBackend(graph, max_input_tokens=8, recipe=Int8Recipe(keep=("typo",)))


class Counted(_Form):
    """Notes what it was made for, and gives other bits over two cores if it is told to."""

    made: ClassVar[list[tuple[int, int]]] = []
    odd: ClassVar[bool] = False

    def __init__(self, *given: Any, streams: int, threads: int) -> None:
        super().__init__(*given, streams=streams, threads=threads)
        self.made.append((streams, threads))
        self._spread = threads > streams

    def run(self, feeds: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        found = super().run(feeds)
        return np.nextafter(found, np.float32(2)) if self.odd and self._spread else found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr(Counted, "made", [])
    monkeypatch.setattr("server.inference.openvino_backend._Form", Counted)
    return Counted


@pytest.mark.parametrize(
    ("worker_threads", "wide_threads", "least_heavy", "forms"),
    [
        (1, 1, 10**9, [(1, 1)]),
        (2, 1, 10**9, [(2, 2)]),  # where no pass is spread
        (2, 2, 10**9, [(2, 2), (1, 2)]),
        (2, 1, 1, [(1, 2)]),
        (2, 2, 1, [(1, 2)]),
    ],
)
def test_no_form_is_made_that_is_not_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted: type[Counted],
    worker_threads: int,
    wide_threads: int,
    least_heavy: int,
    forms: list[tuple[int, int]],
) -> None:
    if is_refused("bfloat16"):
        return
    monkeypatch.setattr("server.inference.openvino_backend._HEAVY_WEIGHTS", least_heavy)
    backend = OpenvinoBackend(
        published(tmp_path),
        max_input_tokens=8,
        worker_threads=worker_threads,
        wide_threads=wide_threads,
    )
    assert counted.made == forms
    assert (backend._wide is backend._narrow) == (len(forms) == 1)


@pytest.mark.parametrize("odd", [False, True])
def test_where_several_cores_give_other_bits_none_is_spread_and_somebody_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counted: type[Counted],
    odd: bool,
) -> None:
    if is_refused("bfloat16"):
        return
    monkeypatch.setattr(counted, "odd", odd)
    graph = published(tmp_path)
    backend = OpenvinoBackend(graph, max_input_tokens=8, worker_threads=2, wide_threads=2)
    text = [np.array([3, 4], np.int32)]
    assert backend.forward(text, alone=True).tobytes() == backend.forward(text).tobytes()
    assert (backend._wide is backend._narrow) == odd
    assert (f"graph {graph}: texts are computed on one core each" in caplog.text) == odd


def test_a_recipe_that_keeps_everything_is_no_int8(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no matrix that can be int8"):
        OpenvinoBackend(published(tmp_path), max_input_tokens=8, recipe=Int8Recipe(keep=("*",)))


def test_a_processor_that_openvino_finds_without_bfloat16_is_an_error_and_never_emulates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Compiled:
        def get_property(self, name: str) -> object:
            return ov.Type.f32

    class Core:
        def compile_model(self, *given: object) -> Compiled:
            return Compiled()

    monkeypatch.setattr("server.inference.openvino_backend.CORE", Core())
    with pytest.raises(ValueError, match="does not compute in bfloat16"):
        _Form(object(), None, streams=1, threads=1)


def test_importing_tells_nobody_and_leaves_nothing_at_home(tmp_path: Path) -> None:
    """The stand-in takes the place of what reports to Intel, which is installed beside openvino."""
    code = """
import importlib.metadata, json, sys
import server.inference.openvino_library
import openvino.tools.ovc
print(json.dumps([importlib.metadata.version("openvino-telemetry") > "",
    type(openvino.tools.ovc.telemetry).__module__,
    [name for name in sys.modules if name.startswith("openvino_telemetry.")]]))
"""
    quiet_in_ci = ("CI", "XDG_CACHE_HOME")
    environ = {name: text for name, text in os.environ.items() if name not in quiet_in_ci}
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(outcome.stdout) == [True, "openvino.tools.ovc.telemetry_stub", []]
    assert list(tmp_path.iterdir()) == []
