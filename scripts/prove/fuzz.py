"""Bytes that nobody thought of, found by what code they reach (atheris, libFuzzer).

    pip install atheris                                # has wheels for some Pythons only
    python -m scripts.prove.fuzz                       # all targets at once, an hour each
    python -m scripts.prove.fuzz --seconds 60 --targets card

Needs no server and no network. What is found lies in `.prove/fuzz/TARGET/findings` as it was sent,
and what reached new code in `.prove/fuzz/TARGET/corpus`, from which the next run goes on.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.prove.tables import options, print_table

TARGETS = ("schemas", "protocol", "bundle", "card")
FOLDER = Path(".prove/fuzz")
INSTRUMENTED = ["server.api", "server.http", "server.delivery", "server.catalog"]
INSTRUMENTED += ["uvicorn.protocols.http", "h11", "tomllib", "tarfile"]
MAX_S = 5  # of one input
MAX_MIB = 1024  # of the whole process
MAX_BYTES = 8192  # of one input


def fuzz(name: str, seconds: int) -> None:
    """Try one target for so long; ends the process."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = importlib.import_module("tests.fuzz_targets").TARGETS[name]
    corpus, findings = FOLDER / name / "corpus", FOLDER / name / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = FOLDER / name / "words"
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    known: set[str] = set()

    def try_bytes(content: bytes) -> None:
        try:
            target.try_bytes(content)
        except BaseException as error:  # one finding must not end the hour
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = f"{type(error).__name__} {[(one.name, one.lineno) for one in frames]}"
            if place in known or isinstance(error, KeyboardInterrupt):
                return
            known.add(place)
            digest = hashlib.sha256(content).hexdigest()[:16]
            (findings / digest).write_bytes(content)
            traceback.print_exc()

    flags = [f"-max_total_time={seconds}", f"-timeout={MAX_S}", f"-rss_limit_mb={MAX_MIB}"]
    flags += ["-print_final_stats=1", f"-dict={words}", f"-artifact_prefix={findings}/"]
    atheris.Setup([sys.argv[0], *flags, f"-max_len={MAX_BYTES}", str(corpus)], try_bytes)
    atheris.Fuzz()


def _row(name: str, log: str) -> tuple[object, ...]:
    """From what libFuzzer said."""
    executions = re.findall(r"number_of_executed_units: (\d+)", log) or ["died"]
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log) or [("?", "?", "?")]
    found = len(list((FOLDER / name / "findings").glob("*")))
    return name, executions[-1], *coverage[-1], found


def _rows(names: Sequence[str], seconds: int) -> Iterator[tuple[object, ...]]:
    running = {}
    for name in names:
        (FOLDER / name).mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "scripts.prove.fuzz", "--here", name]
        with (FOLDER / name / "log").open("wb") as log:
            command += ["--seconds", str(seconds)]
            running[name] = subprocess.Popen(command, stdout=log, stderr=log)
    for name, process in running.items():
        process.wait()
        yield _row(name, (FOLDER / name / "log").read_text(errors="replace"))


def main() -> None:
    """Fuzz in a process each, or one target here, and print the table."""
    given = options(__doc__, targets=",".join(TARGETS), seconds=3600, here="")
    if given.here:
        fuzz(given.here, given.seconds)
    columns = ("target", "executions", "places reached", "features", "inputs kept", "findings")
    print_table(columns, _rows(given.targets.split(","), given.seconds))


if __name__ == "__main__":
    main()
