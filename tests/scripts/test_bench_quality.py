"""What the benchmark says of dtypes, of peers and of the worth of vectors; no speed is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scripts.benchmark import cli, plots, report, running, targets
from scripts.benchmark.measuring import Load
from scripts.benchmark.peers import OnnxRuntime, OpenVino, Vectors
from scripts.benchmark.quality import documentation, quality
from scripts.benchmark.results import Record, Results
from scripts.benchmark.scenario import OURS, OWN, TABLE, Bench, Turn
from scripts.benchmark.scenarios import verify
from scripts.benchmark.targets import BenchError, Peer, PeerOptions
from scripts.benchmark.texts import make_requests

LINES = 40


class Computed(Peer):
    """A peer that gives these vectors, without a process."""

    def __init__(self, name: str, dtype: str, vectors: Vectors) -> None:
        self.name, self.dtype, self._vectors = name, dtype, vectors

    def ask(self, method: str, **arguments: Any) -> Vectors:
        assert method == "compute"
        assert sum(map(len, arguments["requests"])) == len(self._vectors)
        return self._vectors


def unit(vectors: Vectors) -> Vectors:
    rows: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return rows


def take_turns(
    scenario: str, peers: Sequence[Peer], work: Mapping[str, Any], stsb: Path | None = None
) -> Results:
    row = next(row for row in TABLE if (row.device, row.name) == ("cpu", scenario))
    bench = Bench({peer.name: peer for peer in peers}, Load([]), stsb)
    for peer in peers:
        turn = Turn(bench, row, "", work, peer, 0, "")
        (quality if scenario == "quality" else verify)(turn, **work)
    return bench.results


# --- the worth of vectors ---------------------------------------------------------------


@pytest.fixture
def exact() -> Vectors:
    return unit(np.random.default_rng(1).normal(size=(LINES + 6, 384)).astype(np.float32))


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.csv"
    file.write_text('"a, b",c,0.5\nd,e,5.0\nf,g,2\n')
    return file


def test_vectors_are_compared_with_those_in_float32(exact: Vectors, pairs: Path) -> None:
    rough = exact.copy()
    rough[0] = exact[0] * 0.8 + exact[1] * 0.6  # one text among 46 is another
    rough = unit(rough)
    peers = [Computed("exact", "float32", exact), Computed("rough", "int8", rough)]
    results = take_turns("quality", peers, {"dimensions": 384, "lines": LINES}, pairs)
    of_exact, of_rough = (record.figures for record in results.records)
    assert of_exact["least_cosine"] == pytest.approx(1, abs=1e-6)
    assert of_exact["top_ten_kept_percent"] == 100
    least = float(exact[0].astype(np.float64) @ rough[0])
    assert of_rough["least_cosine"] == pytest.approx(least, abs=1e-6)
    assert of_rough["mean_cosine"] == pytest.approx(1 - (1 - least) / len(exact), abs=1e-6)
    # Sorted in full, unlike in the function.
    near = [np.argsort(-(v @ v.T)[:LINES, :LINES], axis=1)[:, 1:11] for v in (exact, rough)]
    kept = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)])
    assert kept < 1
    assert of_rough["top_ten_kept_percent"] == pytest.approx(100 * kept)
    left, right = exact[LINES : LINES + 3], exact[LINES + 3 :]
    ranks = stats.spearmanr((left * right).sum(axis=1), [0.5, 5, 2]).statistic
    assert of_rough["spearman"] == of_exact["spearman"] == pytest.approx(100 * ranks)


def test_without_float32_in_the_run_nothing_is_compared(exact: Vectors) -> None:
    with pytest.raises(BenchError, match="add --dtype float32"):
        take_turns(
            "quality",
            [Computed("rough", "int8", exact[:LINES])],
            {"dimensions": 384, "lines": LINES},
        )


def test_only_our_servers_are_asked_for_shorter_vectors(exact: Vectors) -> None:
    peers = [Computed("peer", "float32", exact[:LINES])]
    assert take_turns("quality", peers, {"dimensions": 64, "lines": LINES}).records == []


def test_lines_of_the_documentation_are_the_same_every_time() -> None:
    lines = documentation(300)
    assert len(set(lines)) == len(lines) == 300
    documentation.cache_clear()
    assert documentation(300) == lines
    assert all(30 < len(line) < 200 for line in lines)


# --- verify -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtypes", "cosine", "passes"),
    [
        (("float32", "float32"), 0.9998, False),
        (("float32", "bfloat16"), 0.9998, True),
        (("float32", "bfloat16"), 0.998, False),
        (("int8", "float32"), 0.97, True),
        (("float32", "int8"), 0.94, False),
    ],
)
def test_vectors_must_be_as_near_as_the_dtype_allows(
    dtypes: tuple[str, str], cosine: float, passes: bool, exact: Vectors
) -> None:
    first, other = exact[:8], np.roll(exact[:8], 1, axis=0)
    other = unit(other - (other * first).sum(axis=1, keepdims=True) * first)
    second = (cosine * first + np.sqrt(1 - cosine**2) * other).astype(np.float32)
    peers = [Computed("first", dtypes[0], first), Computed("second", dtypes[1], second)]
    row = next(row for row in TABLE if (row.device, row.name) == ("cpu", "verify"))
    refused = pytest.raises(BenchError, match="second gives other vectors")
    with contextlib.nullcontext() if passes else refused:
        take_turns("verify", peers, row.work)


# --- targets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "started"),
    [
        ([], {OURS}),
        (["--dtype", "int8"], {"ours, int8"}),
        (["--dtype", "int8", "--dtype", "float32"], {OURS, "ours, int8"}),
        (["--dtype", "bfloat16", "--peer", "llama.cpp"], {"ours, bfloat16", "llama.cpp"}),
    ],
)
def test_a_server_is_started_for_each_dtype(flags: list[str], started: set[str]) -> None:
    asked = cli.read_arguments(["--only", "query", *flags])
    assert running.needed_targets(asked, running.chosen_rows(asked)) == started


@pytest.mark.parametrize("dtype", OWN)
def test_a_server_is_told_its_dtype(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []
    monkeypatch.setattr(targets, "own_server", lambda *given: commands.append(given))
    asked = cli.read_arguments(["--dtype", dtype])
    with contextlib.ExitStack() as stack:
        running.make_server(OWN[dtype], asked, stack)
    ((name, flags, _, told),) = commands
    assert (name, told) == (OWN[dtype], dtype)
    assert flags == ["--device", "cpu"] + (["--dtype", dtype] if dtype != "float32" else [])


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--dtype", "float16"], "argument --dtype: invalid choice: 'float16'"),
        (["--dtype", "int8", "--device", "torch-cpu"], "argument --dtype: not with --device"),
        (["--stsb", "/nowhere/pairs.csv"], "argument --stsb: no file /nowhere/pairs.csv"),
    ],
)
def test_a_mistake_is_told(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.read_arguments(flags)
    assert capsys.readouterr().err.startswith(f"bench: {complaint}")


def test_packages_of_a_peers_folder_go_before_the_installed_ones(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("")
    options = PeerOptions("cpu", Path("unused"), packages=str(tmp_path))
    with contextlib.closing(Peer("peer", "peers:LoadPeer", options)) as peer:
        found = peer._pool.submit(eval, "__import__('numpy').__file__").result()
    assert found == str(tmp_path / "numpy.py")


@pytest.mark.parametrize(
    ("dtype", "least", "most"), [("bfloat16", 0.9995, 1), ("int8", 0.99, 0.9995)]
)
def test_bare_openvino_gives_the_models_vectors(dtype: str, least: float, most: float) -> None:
    options = PeerOptions("cpu", Path("unused"), dtype=dtype)
    texts = make_requests("mixed", "seed", 2, texts=12)
    alone = OnnxRuntime(options)
    exact = np.concatenate([alone.compute([[text]]) for request in texts for text in request])
    found = OpenVino(options).compute(texts)
    assert least < (exact * found).sum(axis=1).min() < most


# --- what is shown ----------------------------------------------------------------------


@pytest.fixture
def results() -> Results:
    sizes = [
        Record("quality", f"{size} dimensions", name, 0, {"texts_per_s": 300.0, "spearman": worth})
        for size, worth in ((384, 86.716), (64, 85.01))
        for name in (OURS, "ours, int8")
    ]
    peer = {"texts_per_s": 100.0, "spearman": 86.7, "mean_cosine": 0.999941}
    speeds = [
        Record("query", "", name, number, {"p50_ms": ms})
        for name, times in ((OURS, (6.0, 7.0, 8.0)), ("llama.cpp", (4.0, 5.0, 6.0)))
        for number, ms in enumerate(times)
    ]
    return Results([*speeds, *sizes, Record("quality", "384 dimensions", "llama.cpp", 0, peer)])


def test_all_scenarios_are_told_in_short(results: Results) -> None:
    summary = next(report.tables(results))
    assert summary.splitlines() == [
        "### in short",
        "",
        "|  | query: p50 ms | quality: STS-B dev, Spearman x 100 |",
        "| --- | --- | --- |",
        "| ours | 7 (6 to 8) | 86.72 |",
        "| llama.cpp | 5 (4 to 6) | 86.70 |",
        "| ours, int8 |  | 86.72 |",
    ]
    ratio = "| p50 ms: ours through this |  | 1.40 (1.33 to 1.50) |"
    assert ratio in "".join(report.tables(results))
    assert "| 384 dimensions: mean cosine |  |  | 0.99994 |" in "".join(report.tables(results))


def test_one_plot_shows_what_each_dtype_and_size_is_worth(results: Results, tmp_path: Path) -> None:
    plots.draw(tmp_path, results)
    drawn = (tmp_path / "quality.svg").read_text()
    for told in ("ours, int8", "llama.cpp", ">384<", ">64<", "STS-B dev, Spearman x 100"):
        assert told in drawn
    assert [file.name for file in tmp_path.iterdir()] == ["quality.svg"]
