"""The scenarios for GPUs, by torch on the CPU: that they run, and their arithmetic."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.benchmark import cli, gpu, report
from scripts.benchmark.load import (
    Answered,
    gpu_figures,
    shares_of,
    tree_usage,
    window_figures,
)
from scripts.benchmark.results import Record, Results
from server.metrics import EngineMetrics, Metrics
from tests.conftest import PLAIN, REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "bench.py"


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
    facts, results = report.read_json(tmp_path / cli.RESULTS)
    assert {record.scenario for record in results.records} == set(gpu.SCENARIOS)
    for record in results.records:
        rates = [v for name, v in record.figures.items() if name.endswith("_per_s")]
        assert all(rate > 0 for rate in rates), record
    assert facts["dtype"] == "float32"
    assert str(official_folder) not in done.stdout
    for name in gpu.SCENARIOS:
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
    report.write_json(tmp_path / "results.json", facts, results)
    read_facts, read_results = report.read_json(tmp_path / "results.json")
    assert (read_facts, read_results) == ({**facts, "goals": []}, results)
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
        (["--device", "tpu"], "argument --device: must be cpu, torch-cpu, cuda or cuda:N"),
    ],
)
def test_a_mistake_is_told(
    flags: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.read_arguments(flags)
    assert capsys.readouterr().err.startswith(f"bench: {complaint}")


def test_scenarios_run_in_their_order() -> None:
    asked = cli.read_arguments(["--device", "cuda:1", "--only", "http", "--only", "rate"])
    assert asked.only == ["rate", "http"]
    assert cli.read_arguments(["--device", "cuda"]).only == list(gpu.SCENARIOS)


@pytest.mark.parametrize(
    ("connections", "processes", "shares"),
    [(1, 6, [1]), (16, 6, [3, 3, 3, 3, 2, 2]), (256, 2, [128, 128])],
)
def test_connections_are_shared(connections: int, processes: int, shares: list[int]) -> None:
    assert shares_of(connections, processes) == shares


def test_answers_count_by_what_of_them_lies_inside() -> None:
    answered = [
        Answered(ended=9, ms=1000, texts=1, tokens=100),  # over before
        Answered(ended=10.5, ms=1000, texts=1, tokens=10),  # half inside
        Answered(ended=12, ms=500, texts=1, tokens=10),
        Answered(ended=14.5, ms=1500, texts=1, tokens=30),  # a third is inside
    ]
    figures = window_figures(answered, 10, 13.5)
    assert figures["tokens_per_s"] == pytest.approx((5 + 10 + 10) / 3.5)
    assert (figures["requests"], figures["p50_ms"]) == (2, 500)
    assert "p50_ms" not in window_figures(answered[:1], 10, 13.5)


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
            while (usage := tree_usage(process.pid)).cpu_s < 0.55 and time.monotonic() < deadline:
                time.sleep(0.05)
            assert usage.cpu_s >= 0.55  # the ended one's and the living one's
            assert usage.resident_bytes > 1e6
        finally:
            process.kill()


def test_stages_are_means_of_what_was_between() -> None:
    metrics = Metrics([PLAIN], [PLAIN])
    engine = EngineMetrics(metrics, PLAIN)
    metrics.stage_seconds.labels("wait", PLAIN).observe(100)
    before = gpu.read_totals(metrics.page().decode())
    for seconds in (0.001, 0.003):
        metrics.stage_seconds.labels("wait", PLAIN).observe(seconds)
    engine.batch_tokens.observe(4096)
    figures = gpu.stage_figures(before, gpu.read_totals(metrics.page().decode()))
    assert figures == {"wait_ms": pytest.approx(2), "micro_batch_tokens": 4096}
