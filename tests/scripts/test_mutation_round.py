"""The mutation round on a made-up tree: which faults it makes, and what it says of them."""

from __future__ import annotations

import ast
import json
import os
import sys
import tempfile
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.mutation_round import Copy, Mutant, Source, choose, comparison, in_order, rows_of, run

WORK = """\
def is_large(number):
    return number >= 10


def count_down(number):
    while number > 0:
        number -= 1
    return number
"""
TEST_WORK = """\
import os, subprocess, sys
from server.room.work import count_down, is_large

def test_large():
    assert is_large(11) and not is_large(9)

def test_down():
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    child = subprocess.Popen(command, start_new_session=True)
    with open(os.environ["CHILD"], "w") as file:
        file.write(str(child.pid))
    assert count_down(3) == 0
    child.kill()
    child.wait()
"""


def mutants(text: str, kind: str | None = None) -> list[Mutant]:
    found = Source(text.encode()).mutants("server/room/work.py")
    return [mutant for mutant in found if kind in (None, mutant.kind)]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {"server/__init__.py": "", "server/room/__init__.py": "", "server/room/work.py": WORK}
    files |= {"tests/room/test_work.py": TEST_WORK, "tests/room/test_all.py": "def test(): ..."}
    for name, text in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CHILD", str(tmp_path / "child"))
    # A quick start: the tests of the made-up tree need no others.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "_hypothesis_pytestplugin,xdist.plugin")
    return tmp_path / "tree"


# --- the faults ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("comparison", "return a < b", ["return a <= b"]),
        ("comparison", "return 0 == a >= (b)", ["return 0 != a >= (b)", "return 0 == a > (b)"]),
        ("comparison", "return a not  in b", ["return a in b"]),
        ("comparison", "return a is not b", ["return a is b"]),
        ("arithmetic", "return (a) + b // 2", ["return (a) - b // 2", "return (a) + b * 2"]),
        ("arithmetic", "a += b", ["a -= b"]),
        ("arithmetic", "return a ** b / a % b", []),
        ("boolean", "return a and b and a", ["return a or b and a", "return a and b or a"]),
        ("not removed", "return not (a or b)", ["return  (a or b)"]),
        ("constant", "return a[1] - 2.5", ["return a[2] - 2.5", "return a[1] - 3.5"]),
        ("truth", "return a(b=True)", ["return a(b=False)"]),
        ("return", "return 'ü', a", ["return None"]),
        ("return", "return None", []),
        ("loop", "while a: break", ["while a: continue"]),
        ("loop", "for a in b: continue", ["for a in b: break"]),
        ("statement", "self.a = b", ["pass"]),
        ("statement", "a: int = b", ["pass"]),
        ("statement", "await a(b)", ["pass"]),
        ("statement", "raise a from b", ["pass"]),
        ("condition", "if a or b: return", ["if not (a or b): return"]),
        ("condition", "return 'ü' if a else b", ["return 'ü' if not (a) else b"]),
        ("condition", "if not a: return", []),
    ],
)
def test_each_kind_changes_what_it_names_and_nothing_else(
    kind: str, before: str, after: list[str]
) -> None:
    text = f"async def f(a, b):\n    'It does.'\n    {before}\n"
    made = [Source(text.encode()).mutated(mutant).decode() for mutant in mutants(text, kind)]
    assert made == [text.replace(before, line) for line in after]
    for one in made:
        compile(one, "made", "exec")


def test_what_does_not_run_or_only_tells_is_left_alone() -> None:
    text = '''
"""1 < 2"""
import a
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import b
class C:
    """1 < 2"""
    size: Annotated[int, Field(ge=1)]
    @decorated(1)
    def f(self, a: Literal[1], *, b: L[True]) -> A[1]:
        log.warning("%d", a + 1)
        show(help=1 + a, description=f"{a + 1}")
    def __repr__(self):
        return 1 + self.size
'''
    assert [mutant.source for mutant in mutants(text)] == [
        'show(help=1 + a, description=f"{a + 1}")'  # the call itself can be deleted
    ]


def test_a_mutant_is_found_again_after_its_line_moved_and_not_after_it_changed() -> None:
    twice = (
        WORK + "\n\nclass Other:\n    def is_large(self, number):\n        return number >= 10\n"
    )
    old = [one for one in mutants(twice, "comparison") if ">=" in one.source]
    assert [one.function for one in old] == ["is_large", "Other.is_large"]
    moved = "# moved\n\n\n" + twice
    new = [one for one in mutants(moved, "comparison") if one in old]
    assert new == old
    assert [one.line - 3 for one in new] == [one.line for one in old]
    changed = moved.replace("number >= 10", "number >= TEN", 1)
    assert [one for one in mutants(changed) if one in old] == [old[1]]


def test_equal_lines_of_a_function_are_told_apart() -> None:
    line = "    work(0)\n"
    text = "def f():\n" + line + "    rest(0)\n" + line
    first, second = (one for one in mutants(text, "statement") if "work" in one.source)
    assert (first.occurrence, second.occurrence) == (0, 1)
    assert first != second
    assert [one.line for one in mutants("\n" + text) if one == second] == [5]


def test_the_choice_is_repeatable_and_covers_rooms_and_kinds(tree: Path) -> None:
    large = "".join(WORK.replace("def ", f"def f{n}_") for n in range(30))
    (tree / "server/large").mkdir()
    (tree / "server/large/work.py").write_text(large)
    for small in ("server/top.py", "server/bottom.py", "server/room/more.py"):
        (tree / small).write_text(WORK)
    chosen = choose(tree, seed=13, count=40)
    assert chosen == choose(tree, seed=13, count=40) != choose(tree, seed=14, count=40)
    assert Counter(one.room for one in chosen) == {"large": 28, "room": 6, "top": 6}
    assert len({(one.file, one.line) for one in chosen}) == 40
    kinds = Counter(one.kind for one in chosen if one.room == "large")
    assert min(kinds.values()) >= 4, kinds
    for one in chosen:
        source = Source((tree / one.file).read_bytes())
        assert ast.dump(ast.parse(source.mutated(one))) != ast.dump(ast.parse(source.text))


# --- trying them ---------------------------------------------------------------------------------


def test_the_mirror_comes_first_then_what_names_the_module_then_the_rest(tree: Path) -> None:
    (tree / "tests/room/test_z.py").write_text("import server.room.work")
    ordered = [f"tests/room/test_{name}.py" for name in ("work", "z", "all")]
    assert in_order(tree, "server/room/work.py") == ordered
    (tree / "tests/test_top.py").touch()
    assert in_order(tree, "server/top.py") == ["tests/test_top.py"]  # of no room


@pytest.mark.slow
def test_killed_survived_and_not_found(tree: Path, tmp_path: Path, capfd: Any) -> None:
    by_kind = {one.kind: one for one in mutants(WORK) if one.function == "is_large"}
    killed, survived = by_kind["return"], by_kind["comparison"]  # 10 itself is not tried
    gone = Mutant("server/room/work.py", "gone", "return", "return 1", "1", "None")
    out = tmp_path / "out.jsonl"
    options = Namespace(tree=tree, python=Path(sys.executable), jobs=2, limit_s=60, out=out)
    run([survived], options)
    run([killed, survived, gone], options)  # goes on
    assert (tree / "server/room/work.py").read_text() == WORK
    rows = {row["name"]: row for row in rows_of(out)}
    assert len(rows) == len(rows_of(out)) == 4
    assert rows.pop("server/room/__init__.py:1:0 unchanged")["outcome"] == "survived"
    assert rows[survived.name]["outcome"] == "survived"
    assert rows[gone.name]["outcome"] == "not found"
    assert rows[killed.name]["outcome"] == "killed"
    assert "test_work.py::test_large" in rows[killed.name]["by"]
    assert "not found" in capfd.readouterr().out


def test_a_room_that_fails_without_a_fault_stops_the_round(tree: Path, tmp_path: Path) -> None:
    (tree / "tests/room/test_all.py").write_text("def test_all(): assert False")
    out = tmp_path / "out.jsonl"
    options = Namespace(tree=tree, python=Path(sys.executable), jobs=1, limit_s=60, out=out)
    with pytest.raises(SystemExit, match=r"room fails without a fault: FAILED .*test_all"):
        run(mutants(WORK), options)
    assert out.read_text() == ""


@pytest.mark.slow
def test_one_that_hangs_is_out_of_time_and_takes_its_children_with_it(
    tree: Path, tmp_path: Path
) -> None:
    (hangs,) = (one for one in mutants(WORK, "statement") if one.function == "count_down")
    copy = Copy(tree, Path(sys.executable), limit_s=4)
    assert copy.result(hangs)["outcome"] == "out of time"
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)
    assert not copy.scratch.exists()
    assert (copy.tree / "server/room/work.py").read_text() == WORK


def test_the_comparison_counts_only_what_was_tried_on_both_trees(tmp_path: Path) -> None:
    outcomes = [
        ("killed", "killed"),
        ("killed", "survived"),
        ("out of time", "killed"),
        ("survived", "survived"),
        ("killed", "not found"),
    ]
    for place, name in enumerate(("before", "after")):
        rows = [
            {"name": f"m{n}", "room": "room", "outcome": both[place], "kind": "truth"}
            | dict.fromkeys(("function", "source", "before", "after"), "x")
            for n, both in enumerate(outcomes)
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = list(comparison(tmp_path / "before", tmp_path / "after"))
    assert "4 tried, killed before and after:    2 ( 50.0%)     2 ( 50.0%)" in lines[0]
    assert lines[1].split()[0] == "all"
    heads = [line.strip() for line in lines[2:] if not line.startswith("    ")]
    assert heads == [
        "Differ: 3",
        "m1, in x: killed, then survived",
        "m2, in x: out of time, then killed",
        "m4, in x: killed, then not found",
        "Survive in both: 1",
        "m3, in x: survived, then survived",
    ]
