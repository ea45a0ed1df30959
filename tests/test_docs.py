"""What the documents say is so: their examples run, and their commands are those of the software."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from server.commands import cli
from tests.pages import PAGES, README, REPOSITORY, blocks_of
from tests.server_process import ServerProcess

QUICKSTART = "docs/quickstart.md"
PYTHON = "docs/how-to/python.md"
ACCESS = PAGES["docs/how-to/keys-and-limits.md"]
COMMANDS = {
    "sh": ["bash", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


def examples_of(page: str, section: str) -> list[tuple[str, str, str]]:
    """Language and code of each example of a section, and the output that stands behind it."""
    blocks = blocks_of(PAGES[page].split(f"## {section}\n")[1].split("\n## ")[0])
    outputs = [content if not language else "" for language, content in blocks[1:]] + [""]
    found = zip(blocks, outputs, strict=True)
    return [(language, code, output) for (language, code), output in found if language]


EXAMPLES = {
    README: examples_of(README, "Use it"),
    QUICKSTART: examples_of(QUICKSTART, "Ask it"),
    PYTHON: [*examples_of(PYTHON, "Open a model"), *examples_of(PYTHON, "Errors")],
}


@pytest.mark.parametrize(
    ("language", "code", "output"),
    [example for examples in EXAMPLES.values() for example in examples],
)
@pytest.mark.server
def test_an_example_runs_and_prints_what_the_page_shows(
    server: ServerProcess, language: str, code: str, output: str
) -> None:
    outcome = subprocess.run(
        [*COMMANDS[language], code.replace("http://127.0.0.1:8000", server.url)],
        cwd=REPOSITORY / "tests" / "node",  # where Node finds its packages
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    shown = ".*".join(map(re.escape, output.strip().split("…")))
    assert re.fullmatch(shown, outcome.stdout.strip(), re.DOTALL), outcome.stdout


def test_there_is_an_example_for_each_kind_of_client_and_its_output_is_shown() -> None:
    languages = {page: [language for language, _, _ in found] for page, found in EXAMPLES.items()}
    assert languages == {
        README: ["sh", "python"],
        QUICKSTART: ["sh", "python", "python", "js"],
        PYTHON: ["python", "python"],
    }
    assert all(output for found in EXAMPLES.values() for _, _, output in found)


def answers_of(commands: list[str]) -> list[tuple[int, str]]:
    """Status and body of each command of docs/how-to/keys-and-limits.md; the page's blocks run in one shell.

    From top to bottom, as somebody pastes them; only the server's port is another one.
    """
    install, *blocks = [code for language, code in blocks_of(ACCESS) if language == "sh"]
    assert install.startswith("make install\n")
    (start,) = [place for place, code in enumerate(blocks) if "embedding-server serve" in code]
    (stop,) = [place for place, code in enumerate(blocks) if code == "kill $!\n"]
    asked = [command.replace("curl -s", MARKED_CURL) for command in commands]
    lines = [*blocks[:start], f"echo {MARK}", "read -r URL", *blocks[start + 1 : start + 2]]
    lines += ["echo", f"echo {MARK}", *asked, f"echo {MARK}", *blocks[start + 2 : stop]]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/keys.db"
        environment = {**os.environ, "EMBEDDING_SERVER_DATABASE_URL": url}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with subprocess.Popen(
            ["bash", "-euc", "\n".join(lines)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as shell:
            assert shell.stdout is not None
            assert any(line == MARK + "\n" for line in shell.stdout), "keys were not made"
            with ServerProcess(environment=environment) as server:
                printed, _ = shell.communicate(f"{server.url}\n", timeout=120)
            assert shell.returncode == 0
    answers = printed.split(MARK + "\n")[1].splitlines()
    return [(int(status), body) for body, status in zip(answers[::2], answers[1::2], strict=True)]


MARK = "=== answers ==="
MARKED_CURL = "curl -s -w '\\n%{http_code}\\n'"


@pytest.mark.server
def test_each_refusal_of_the_access_page_is_answered_as_it_says() -> None:
    table = ACCESS.split("<!-- answers -->\n")[1].split("<!-- /answers -->")[0]
    rows = [re.findall(r"^\| (\d+) \| `(.*)` \| `(.*)` \|$", line) for line in table.splitlines()]
    found = [row[0] for row in rows if row]
    assert [status for status, _, _ in found] == (
        ["401", "401", "401", "403", "403", "429", "429", "400", "402"]
    )
    for (status, _, body), answer in zip(
        found, answers_of([command for _, command, _ in found]), strict=True
    ):
        varies = re.compile(r"in \d+ s|sk-\*\*\*\S+")  # the time to wait; a random key's end
        assert (int(status), varies.sub("…", body)) == (answer[0], varies.sub("…", answer[1]))


ACTIVATION = ". .venv/bin/activate"
EXTRAS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]


def lines_of(page: str) -> Iterator[str]:
    """What is pasted into a shell: the lines of its blocks, and what stands in the text."""
    for language, code in blocks_of(page):
        if language == "sh":
            yield from code.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    yield from filter(is_shells, re.findall(r"`([^`\n]+)`", prose))


def is_shells(line: str) -> bool:
    """Whether a shell could read it; a message with an apostrophe is none of its lines."""
    try:
        shlex.split(line)
    except ValueError:
        return False
    return True


def commands_of(line: str) -> Iterator[list[str]]:
    """The commands of a line, as words, without what a shell keeps for itself."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            yield words
            words = []
        else:
            words.append(word)


def own_commands_of(page: str) -> list[list[str]]:
    """The arguments of each `embedding-server` of a page, wherever the command lies."""
    found = []
    for line in lines_of(page):
        if "embedding-server " not in line:
            continue
        for words in commands_of(line):
            program, *arguments = words or [""]
            if program == "{" and arguments:  # a function of a shell
                program, *arguments = arguments
            if program.split("/")[-1] == "embedding-server":
                found.append([word for word in arguments if word != "2"])
    return found


@pytest.mark.parametrize("name", PAGES)
def test_each_command_of_a_page_is_one_that_the_software_has(name: str) -> None:
    for arguments in own_commands_of(PAGES[name]):
        command: Any = typer.main.get_command(cli.app)
        words = [word for word in arguments if word != "--help"]
        while words and isinstance(command, typer.core.TyperGroup):
            command = command.get_command(typer.Context(command), words.pop(0))
        if "$@" in words:  # a function's own arguments
            words[words.index("$@") :] = ["--name", "NAME"]
        if words:  # else it is only spoken of
            command.make_context(" ".join(arguments), words)


def test_the_pages_commands_are_found() -> None:
    found = {" ".join(words) for page in PAGES.values() for words in own_commands_of(page)}
    assert {"models verify", "serve --device cuda", "embed - --truncate", "serve"} <= found
    assert "keys create --json $@" in found
    assert len(found) > 35


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_how_its_command_comes_into_the_shell_before_it_uses_it(name: str) -> None:
    code = "".join(code for language, code in blocks_of(PAGES[name]) if language == "sh")
    bare = re.search(r"^(?:new\(\) { )?embedding-server ", code, re.MULTILINE)
    assert bare is None or ACTIVATION in code[: bare.start()]


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_installs_and_makes_can_be_had(name: str) -> None:
    lines = list(lines_of(PAGES[name]))
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    for words in (words for line in lines for words in commands_of(line) if words):
        if words[0].split("/")[-1] == "pip" and words[1:2] == ["install"]:
            match words[2:]:
                case ["-e", where, "-c", constraints]:
                    extras = re.fullmatch(r"\.\[(.+)\]", where)
                    assert extras is not None
                    assert {*extras[1].split(",")} <= {*EXTRAS, "EXTRA"}
                    assert (REPOSITORY / constraints).is_file()
                case ["--no-index", "--find-links", "wheels", "embedding-server"]:
                    pass
                case ["--no-index", "wheels/*"]:  # all that a bundle brings
                    pass
                case clients:
                    assert {*clients} <= {"openai", "langchain-openai"}
        if words[0] == "make":
            targets = [word for word in words[1:] if "=" not in word]
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
        if words[0] in ("python", "python3") and words[1].endswith(".py"):
            assert (REPOSITORY / words[1]).is_file()


def messages_of(file: Path) -> Iterator[str]:
    """The texts in a module's code, its docstrings left out."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    told = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value not in told
        ):
            yield node.value


def test_no_message_holds_a_command_that_a_shell_may_not_find() -> None:
    """Those that do run come from server/program/command_lines.py."""
    subcommands = "|".join(cli.COMMANDS)
    unrunnable = re.compile(rf"pip install|embedding-server(?:\[| (?:{subcommands})\b)")
    found = {
        f"{file.relative_to(REPOSITORY)}: {text}"
        for file in sorted((REPOSITORY / "server").rglob("*.py"))
        # What a bundle says is for another machine, and the same wherever the bundle is made.
        if file.name != "bundle_format.py"
        for text in messages_of(file)
        if unrunnable.search(text)
    }
    assert found == set()


@pytest.mark.parametrize(
    "place", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs", "server", "scripts"]
)
def test_the_distribution_is_never_named_as_if_an_index_had_it(place: str) -> None:
    root = REPOSITORY / place
    files = [root] if root.is_file() else [*root.rglob("*.py"), *root.rglob("*.md")]
    for file in files:
        assert "embedding-server[" not in file.read_text(encoding="utf-8"), file


def test_each_claim_about_another_server_has_an_address() -> None:
    text, addresses = PAGES["docs/explanation/comparison.md"].split("\n\n[", 1)
    cited = set(re.findall(r"\[([a-z]\d+)\]", text))
    assert cited == set(re.findall(r"^\[?([a-z]\d+)\]: https://", addresses, re.MULTILINE))
    rows = [row.strip("|").split(" | ") for row in text.splitlines() if row.startswith("| ")]
    for row in (row for row in rows if len(row) > 3 and row[0].strip()):
        for cell in row[2:]:  # the first is the question, the second this server
            told = re.search(r"\[[a-z]\d+\]", cell) or "not found" in cell
            assert told or not cell.strip(), (row[0], cell)
