"""The benchmark's own arithmetic and its HTTP client; no figure is measured here."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from scripts.benchmark import cli, report, running
from scripts.benchmark.client import (
    Address,
    BadAnswer,
    Connection,
    Sample,
    closed_loop,
    embeddings_request,
    open_loop,
    poisson_arrivals,
)
from scripts.benchmark.endurance import is_right_refusal, recovery_s
from scripts.benchmark.measuring import Load
from scripts.benchmark.results import Record, Results, model_flops, percentiles_ms
from scripts.benchmark.scenario import OURS, TABLE, Bench, Scenario
from scripts.benchmark.targets import BenchError, Peer, PeerOptions, Server, Target
from scripts.benchmark.texts import EXACT_TOKENS, KINDS, WORDS, make_requests, num_tokens
from tests.conftest import PLAIN, REPOSITORY

REQUEST = embeddings_request(["a short query"])
OPTIONS = PeerOptions("cpu", Path("unused"))
BODY = b"x" * 3000
PLAIN_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\nRetry-After: 7\r\n\r\n" + BODY


# --- texts -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The model's own, which neither cuts nor pads here."""
    tokenizer = Tokenizer.from_file(str(REPOSITORY / "models" / PLAIN / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_token_counts_are_the_tokenizers_and_no_text_must_be_cut(
    kind: str, tokenizer: Tokenizer
) -> None:
    (texts,) = make_requests(kind, "seed", 1, texts=500)
    counts = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    assert counts == [num_tokens(text) for text in texts]
    assert max(counts) <= 256
    if kind == "exact128":
        assert set(counts) == {EXACT_TOKENS}


def test_every_word_is_one_token(tokenizer: Tokenizer) -> None:
    encodings = tokenizer.encode_batch(WORDS, add_special_tokens=False)
    assert [word for word, e in zip(WORDS, encodings, strict=True) if len(e.ids) != 1] == []
    assert len(set(WORDS)) == len(WORDS)


def test_the_same_seed_gives_the_same_texts_and_another_one_others() -> None:
    first = make_requests("mixed", "one", 4, texts=16)
    assert first == make_requests("mixed", "one", 4, texts=16)
    assert first[0] != make_requests("mixed", "two", 4, texts=16)[0] != first[1]
    # Pinned, so that figures of different days are about the same work.
    assert make_requests("query", "one", 1, texts=1) == [["are the around each kept"]]


# --- arithmetic --------------------------------------------------------------------


def test_model_flops_counts_every_matrix_product() -> None:
    tokens, width, inner, heads = 128, 384, 1536, 12
    products = [(tokens, width, width)] * 4  # query, key, value, output: (rows, inner, columns)
    products += [(tokens, width, inner), (tokens, inner, width)]
    products += [(tokens, width // heads, tokens), (tokens, tokens, width // heads)] * heads
    assert model_flops(tokens) == 6 * sum(2 * a * b * c for a, b, c in products)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 99, 5), ([2, 1], 50, 1), (range(100, 0, -1), 95, 95), (range(1, 11), 99, 10)],
)
def test_percentile(values: list[float], percent: int, expected: float) -> None:
    assert percentiles_ms(list(values), [percent]) == {f"p{percent}_ms": expected}


def test_ratios_pair_the_rounds() -> None:
    results = Results(
        [
            Record("indexing", "", target, number, {"tokens_per_s": value})
            for number, pair in enumerate([(10.0, 5.0), (8.0, 2.0)])
            for target, value in zip((OURS, "infinity"), pair, strict=True)
        ]
    )
    assert results.ratios("indexing", "tokens_per_s", OURS, "infinity") == [2, 4]
    assert results.ratios("indexing", "tokens_per_s", OURS, "absent") == []
    (goal,) = report.judged(results)
    assert (goal["median"], goal["least"], goal["most"], goal["met"]) == (3, 2, 4, True)
    assert "| tokens/s: ours through this |  | 3 (2 to 4) |" in next(report.tables(results))


def test_goals_are_ratios_differences_and_losses() -> None:
    both, alone = "indexing with queries", "indexing alone"
    figures = [
        ("query", "", OURS, {"p50_ms": 6.0}),
        ("query", "", "forward pass", {"p50_ms": 5.0}),
        ("query", "", "infinity", {"p50_ms": 30.0}),
        ("query-under-indexing", alone, OURS, {"tokens_per_s": 100.0}),
        ("query-under-indexing", both, OURS, {"tokens_per_s": 80.0}),
        ("soak", "", OURS, {"memory_growth_percent": 5.0}),
    ]
    results = Results(
        [Record(scenario, case, target, 0, told) for scenario, case, target, told in figures]
    )
    judged = {goal["figure"]: (goal["median"], goal["met"]) for goal in report.judged(results)}
    assert judged == {
        "p50: shorter than Infinity's": (5, False),
        "p50 beyond the forward pass": (1, True),
        "indexing lost by the queries": (pytest.approx(20), False),
        "memory: the end's beyond a tenth's": (5, True),
    }


# --- the table and its targets --------------------------------------------------------


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.name}-{row.device}")
def test_a_row_names_a_function_and_gives_it_what_it_takes(row: Scenario) -> None:
    for size in (*row.full, *row.quick):
        work = {**row.work, **size}
        work.pop("case", "")
        inspect.signature(row.function).bind(None, **work)


def test_targets_take_turns_in_the_other_order_every_second_round() -> None:
    row = next(row for row in TABLE if (row.device, row.name) == ("cpu", "query"))
    targets = {name: Target(name, pid=0) for name in row.targets[:3]}
    bench = Bench(targets, Load([]))
    order = [turn.target.name for turn in row.turns(bench, quick=False, rounds=3)]
    names = list(targets)
    assert order == [*names, *reversed(names), *names]


def test_a_peer_tells_what_went_wrong_and_goes_on() -> None:
    with contextlib.closing(Peer("peer", "peers:LoadPeer", OPTIONS)) as peer:
        with pytest.raises(BenchError, match=r"^peer: 'nonsense'"):
            peer.ask("make", kind="nonsense", seed="", requests=1, texts=1)
        assert peer.ask("make", kind="query", seed="", requests=1, texts=1) is None
        assert peer.usage().cpu_s > 0
        os.kill(peer.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match=r"^peer: ended"):
            peer.ask("make", kind="query", seed="", requests=1, texts=1)


def test_a_peer_that_cannot_be_made_says_so_when_it_is_asked() -> None:
    with (
        contextlib.closing(Peer("peer", "peers:Nobody", OPTIONS)) as peer,
        pytest.raises(BenchError, match="Nobody"),
    ):
        peer.ask("rate")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ([sys.executable, "-c", "exit('first\\nlast')"], "stranger did not start: last"),
        ([sys.executable, "-c", ""], "stranger did not start: it said nothing"),
    ],
)
def test_a_server_that_does_not_start_says_why(command: list[str], complaint: str) -> None:
    with (
        pytest.raises(BenchError, match=rf"^{complaint}$"),
        contextlib.closing(Server("stranger", command)) as server,
    ):
        server.wait_ready()


@pytest.mark.parametrize(
    "name",
    ["infinity", "llama.cpp", "sentence-transformers", "sentence-transformers-onnx-int8"],
)
def test_a_peer_that_is_not_installed_is_told_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "FOLDER", tmp_path)
    flags = ["--only", "query", "--peer", name, "--st-folder", str(tmp_path / "absent")]
    asked = cli.read_arguments(flags)
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(BenchError, match=rf"^{name} has no folder .*: run `make bench-peers`$"),
    ):
        running.start(asked, running.chosen_rows(asked), stack)


def test_arrivals_are_the_same_every_time_and_come_at_the_rate() -> None:
    arrivals = poisson_arrivals(100, 10_000, "seed")
    assert arrivals == poisson_arrivals(100, 10_000, "seed") == sorted(arrivals)
    assert arrivals[-1] == pytest.approx(100, rel=0.05)


def probe(due: float, ms: float, status: int = 200, retry_after: str | None = None) -> Sample:
    return Sample(REQUEST, due, due, due + ms / 1e3, status, retry_after)


@pytest.mark.parametrize(
    ("status", "retry_after", "right"),
    [
        *((503, "1", True), (503, "60", True), (503, "61", False), (503, "0", False)),
        *((503, "1.5", False), (503, None, False), (429, "1", False)),
    ],
)
def test_right_refusals(status: int, retry_after: str | None, right: bool) -> None:
    assert is_right_refusal(probe(0, 1, status, retry_after)) is right


def test_recovery_is_when_most_probes_of_a_second_are_normal() -> None:
    slow = [probe(10 + 0.2 * number, 900) for number in range(5)]
    normal = [probe(11 + 0.2 * number, 5) for number in range(10)]
    assert recovery_s([probe(9, 5), *slow, *normal], 10, 4) == pytest.approx(0.6)
    assert recovery_s(slow, 10, 4) == float("inf")


def test_no_path_of_this_machine_is_told() -> None:
    shown = report.command_shown(["--cache", "/home/me/.bench", "--serve-args", "--config /x/a.b"])
    assert shown == "python scripts/bench.py --cache .bench --serve-args '--config a.b'"


# --- the HTTP client ------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(
    *pieces: bytes, delay_s: float = 0, hangs_up: bool = False
) -> AsyncIterator[tuple[Address, list[int]]]:
    """A server with this answer to everything, one request at a time; counts them."""
    served: list[int] = []
    connections: set[asyncio.Task[None]] = set()
    turn = asyncio.Lock()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while await reader.readexactly(len(REQUEST.payload)):
                async with turn:
                    await asyncio.sleep(delay_s)
                served.append(1)
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001 if len(pieces) > 1 else 0)
                if hangs_up:
                    break
            writer.close()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    try:
        yield server.sockets[0].getsockname(), served
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections)
        await asyncio.sleep(0)  # lets the transports close


async def test_an_answer_is_read_however_it_is_cut() -> None:
    for cut in (1, 16, 17, 40, len(PLAIN_ANSWER) - len(BODY), len(PLAIN_ANSWER) - 1):
        async with serving(PLAIN_ANSWER[:cut], PLAIN_ANSWER[cut:]) as (address, _):
            with contextlib.closing(await Connection.open(address)) as connection:
                response = await connection.send(REQUEST.payload)
                assert (response.status, response.body) == (200, BODY)
                assert response.header("retry-after") == "7"
                assert connection.is_open


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "without length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "hung up"),
    ],
)
async def test_half_an_answer_is_refused(answer: bytes, problem: str) -> None:
    async with serving(answer, hangs_up=True) as (address, _):
        connection = await Connection.open(address)
        with contextlib.closing(connection), pytest.raises(BadAnswer, match=problem):
            await connection.send(REQUEST.payload)


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    closing = PLAIN_ANSWER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    async with serving(closing) as (address, _):
        with contextlib.closing(await Connection.open(address)) as connection:
            await connection.send(REQUEST.payload)
            assert not connection.is_open


async def test_a_closed_loop_sends_everything_once() -> None:
    async with serving(PLAIN_ANSWER) as (address, served):
        samples = await closed_loop(address, [REQUEST] * 50, clients=4)
    assert len(samples) == len(served) == 50
    assert {sample.status for sample in samples} == {200}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 4\r\n\r\noops", "answered 500: oops"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "1 texts with 2 bytes"),
    ],
)
async def test_a_closed_loop_ends_at_a_wrong_answer(answer: bytes, problem: str) -> None:
    async with serving(answer) as (address, _):
        with pytest.raises(BadAnswer, match=problem):
            await closed_loop(address, [REQUEST], clients=1)


async def test_an_open_loop_counts_the_waiting() -> None:
    async with serving(PLAIN_ANSWER, delay_s=0.05) as (address, _):
        samples = await open_loop(address, [REQUEST] * 4, [0.0] * 4)
    assert percentiles_ms([sample.ms for sample in samples])["p99_ms"] >= 4 * 50


async def test_clients_of_an_open_loop_give_up() -> None:
    async with serving(PLAIN_ANSWER, delay_s=5) as (address, _):
        began = time.perf_counter()
        samples = await open_loop(address, [REQUEST] * 3, [0, 0, 0.1], until_s=0.2)
    assert time.perf_counter() - began < 2
    assert [sample.status for sample in samples] == [0, 0, 0]


# --- the command line -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--only", "nothing"], "bench: argument --only: invalid choice: 'nothing'"),
        (["--peer", "nobody"], "bench: argument --peer: invalid choice: 'nobody'"),
        (["--against-checkout", "."], "bench: argument --against-checkout: no checkout"),
    ],
)
def test_a_mistake_is_told_in_one_line(flags: list[str], complaint: str, tmp_path: Path) -> None:
    script = REPOSITORY / "scripts" / "bench.py"
    refused = subprocess.run(
        [sys.executable, str(script), *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(complaint)
