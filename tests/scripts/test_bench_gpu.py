"""The scenarios for GPUs, by torch on the CPU: that they run, and their arithmetic."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.benchmark import cli, report, running
from scripts.benchmark.client import Request, Sample
from scripts.benchmark.measuring import gpu_figures, shares_of, window_figures
from scripts.benchmark.results import Record, Results, read_json, write_json
from scripts.benchmark.scenario import TABLE
from scripts.benchmark.scenarios import stage_figures
from scripts.benchmark.targets import Target
from server.metrics import EngineMetrics, Metrics
from tests.conftest import PLAIN, REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "bench.py"
SCENARIOS = [row.name for row in TABLE if row.device == "gpu" and not row.always]


@pytest.mark.torch
def test_every_scenario_runs(official_folder: Path, tmp_path: Path) -> None:
    flags = ["--device", "torch-cpu", "--st-folder", str(official_folder), "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *flags, "--markdown"],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # its lock is not another benchmark's
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    facts, results = read_json(tmp_path / running.RESULTS)
    assert {record.scenario for record in results.records} == set(SCENARIOS)
    for record in results.records:
        rates = [v for name, v in record.figures.items() if name.endswith("_per_s")]
        assert all(rate > 0 for rate in rates), record
    assert facts["dtype"] == "float32"
    assert str(official_folder) not in done.stdout
    for name in SCENARIOS:
        assert f"### {name}\n" in done.stdout
    assert report.origin(facts) in done.stdout


def test_a_file_gives_the_tables_again(tmp_path: Path) -> None:
    results = Results([Record("http", "64 texts", "ours", 0, {"tokens_per_s": 5.0})])
    facts = {
        "date": "2026-11-26",
        "command": "python scripts/bench.py --device cuda",
        "commit": "abc",
        "gpu": "NVIDIA H100 80GB HBM3",
        "machine": {"cores_used": 16, "processor": "Xeon", "python": "3.12.3"},
        "packages": {"torch": "2.11.0"},
    }
    write_json(tmp_path / "results.json", facts, results)
    read_facts, read_results = read_json(tmp_path / "results.json")
    assert (read_facts, read_results) == (facts, results)
    assert report.origin(read_facts) == (
        "`python scripts/bench.py --device cuda`: 2026-11-26, NVIDIA H100 80GB HBM3, 16 cores of "
        "Xeon, Python 3.12.3, torch 2.11.0, commit abc.\n"
    )


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--only", "forward"], "argument --only: forward is not there with --device cpu"),
        (["--device", "cuda", "--only", "soak"], "argument --only: soak is not there with"),
        (["--device", "cuda", "--peer"], "argument --peer: not with --device cuda"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_a_mistake_is_told(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.read_arguments(flags)
    assert capsys.readouterr().err.startswith(f"bench: {complaint}")


def test_scenarios_run_in_their_order() -> None:
    asked = cli.read_arguments(["--device", "cuda", "--only", "http", "--only", "rate"])
    asked_for = [row.name for row in running.chosen_rows(asked) if not row.always]
    assert asked_for == ["rate", "http"]
    every = running.chosen_rows(cli.read_arguments(["--device", "cuda"]))
    assert [row.name for row in every if not row.always] == SCENARIOS


def test_what_takes_long_is_run_if_it_is_asked_for() -> None:
    usual = {row.name for row in running.chosen_rows(cli.read_arguments([]))}
    assert "indexing" in usual
    assert not {"flood", "soak"} & usual
    asked = running.chosen_rows(cli.read_arguments(["--only", "soak"]))
    assert [row.name for row in asked if not row.always] == ["soak"]


@pytest.mark.parametrize(
    ("flags", "started"),
    [
        (["--device", "cuda", "--only", "rate"], {"torch"}),
        (
            ["--device", "cuda", "--only", "indexing"],
            {"torch", "engine", "sentence-transformers", "onnxruntime"},
        ),
        (
            ["--device", "cuda", "--only", "http", "--against", ""],
            {"torch", "load", "onnxruntime", "ours", "against"},
        ),
        (["--only", "indexing"], {"matrix product", "ours"}),
        (
            ["--only", "query", "--peer", "engine", "--guarded"],
            {"ours", "ours, with keys", "engine"},
        ),
    ],
)
def test_what_a_run_needs_is_started(flags: list[str], started: set[str]) -> None:
    asked = cli.read_arguments(flags)
    assert running.needed_targets(asked, running.chosen_rows(asked)) == started


@pytest.mark.torch
@pytest.mark.parametrize("name", ["rate", "forward", "decoder"])
def test_torch_is_asked_what_it_takes(name: str) -> None:
    from scripts.benchmark.peer_torch import TorchPeer  # the other tests need no torch

    (row,) = (row for row in TABLE if row.name == name)
    for size in (*row.full, *row.quick):
        work = {key: value for key, value in {**row.work, **size}.items() if key != "case"}
        inspect.signature(getattr(TorchPeer, name)).bind(None, **work)


@pytest.mark.parametrize(
    ("connections", "processes", "shares"),
    [(1, 6, [1]), (16, 6, [3, 3, 3, 3, 2, 2]), (256, 2, [128, 128])],
)
def test_connections_are_shared(connections: int, processes: int, shares: list[int]) -> None:
    assert shares_of(connections, processes) == shares


def answered(ended: float, ms: float, tokens: int) -> Sample:
    sent = ended - ms / 1e3
    return Sample(Request(b"", (tokens,)), sent, sent, ended, 200)


def test_answers_count_by_what_of_them_lies_inside() -> None:
    samples = [
        answered(9, 1000, 100),  # over before
        answered(10.5, 1000, 10),  # half inside
        answered(12, 500, 10),
        answered(14.5, 1500, 30),  # a third is inside
    ]
    figures = window_figures(samples, 10, 13.5)
    assert figures["tokens_per_s"] == pytest.approx((5 + 10 + 10) / 3.5)
    assert figures["requests_per_s"] == pytest.approx((0.5 + 1 + 1 / 3) / 3.5)
    assert figures["texts_per_s"] == figures["requests_per_s"]
    assert figures["requests"] == 2
    assert figures["p50_ms"] == pytest.approx(500)
    assert "p50_ms" not in window_figures(samples[:1], 10, 13.5)


def test_what_nvidia_smi_says_is_read() -> None:
    figures = gpu_figures("0, 500\n98, 1000\n97, 900\n[N/A], [N/A]\n9")
    assert figures == {"gpu_busy_percent": 97, "gpu_memory_mb": pytest.approx(1048.576)}
    assert gpu_figures("") == {}


@pytest.mark.slow
def test_children_count_as_well(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True);"
        f"child = subprocess.Popen([sys.executable, '-c', {burn!r} + '\\ninput()'], stdin=-1);"
        "print('started', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            deadline = time.monotonic() + 30
            target = Target("parent", process.pid)
            while (usage := target.usage()).cpu_s < 0.55 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert usage.cpu_s >= 0.55  # the ended one's and the living one's
            assert usage.resident_bytes > 1e6
            assert usage.processes == 2
        finally:
            process.kill()


def test_stages_are_means_of_what_was_between() -> None:
    metrics = Metrics([PLAIN], [PLAIN])
    engine = EngineMetrics(metrics, PLAIN)
    metrics.stage_seconds.labels("wait", PLAIN).observe(100)
    before = metrics.page().decode()
    for seconds in (0.001, 0.003):
        metrics.stage_seconds.labels("wait", PLAIN).observe(seconds)
    engine.batch_tokens.observe(4096)
    figures = stage_figures(before, metrics.page().decode())
    assert figures == {"wait_ms": pytest.approx(2), "micro_batch_tokens": 4096}
