"""What the documents say is so: examples run, and the table of settings is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from pydantic import SecretStr

from server.metrics import PREFIX, Metrics
from server.settings import Settings
from tests.conftest import PLAIN, REPOSITORY
from tests.server_process import ServerProcess

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^```(sh|python|js)\n(.*?)^```",
    README.split("## Use it")[1].split("\n## ")[0],
    re.MULTILINE | re.DOTALL,
)
COMMANDS = {
    "sh": ["bash", "-c"],
    "python": [sys.executable, "-W", "error", "-c"],
    "js": ["node", "--input-type=module", "-e"],
}


@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example_of_the_readme_runs(server: ServerProcess, language: str, code: str) -> None:
    outcome = subprocess.run(
        [*COMMANDS[language], code.replace("http://127.0.0.1:8000", server.url)],
        cwd=REPOSITORY / "tests" / "node",  # where Node finds its packages
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    assert re.search(r"\d", outcome.stdout)


def test_there_is_an_example_for_each_kind_of_client() -> None:
    assert [language for language, _ in EXAMPLES] == ["sh", "python", "python", "js"]


def settings_table() -> str:
    """The table as the README must hold it."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = None if name.endswith("_dir") else field.get_default(call_default_factory=True)
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if default is None or default == []:
            shown = "–"
        elif isinstance(default, list):
            shown = ", ".join(f"`{one}`" for one in default)
        else:
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
        rows.append(f"| `{name}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_readme_tells_every_setting_as_it_is_declared() -> None:
    found = README.split("<!-- settings -->\n")[1].split("\n<!-- /settings -->")[0]
    assert found == settings_table()


def metrics_table() -> str:
    """The table as docs/api.md must hold it."""
    families = {family.name: family for family in Metrics([PLAIN], [PLAIN]).families()}
    own = [family for name, family in families.items() if name.startswith(f"{PREFIX}_")]
    rows = []
    for family in own:
        name = family.name.removeprefix(f"{PREFIX}_") + (
            "_total" if family.type == "counter" else ""
        )
        labels = [label for label in family.samples[0].labels if label != "le"]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append(f"| `{name}` ({family.type}) | {shown} | {family.documentation} |")
    return "\n".join(rows)


def test_the_api_page_tells_every_metric_as_it_is_declared() -> None:
    page = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    found = page.split("<!-- metrics -->\n")[1].split("\n<!-- /metrics -->")[0]
    assert found == metrics_table()


ACCESS = (REPOSITORY / "docs/access.md").read_text(encoding="utf-8")


def answers_of(commands: list[str]) -> list[tuple[int, str]]:
    """Status and body of each command of docs/access.md, after its preparation, in one shell."""
    section = ACCESS.split("## What is checked")[1]
    preparation = section.split("```sh\n")[1].split("```")[0]
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/keys.db"
        environment = {**os.environ, "EMBEDDING_SERVER_DATABASE_URL": url}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        with ServerProcess(environment=environment) as server:
            script = preparation.replace("http://127.0.0.1:8000", server.url)
            asked = "\n".join(f"{command.replace('curl -s', MARKED_CURL)}" for command in commands)
            outcome = subprocess.run(
                ["bash", "-euc", f"{script}\necho; echo {MARK}\n{asked}"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
    lines = outcome.stdout.split(MARK + "\n")[1].splitlines()
    return [(int(status), body) for body, status in zip(lines[::2], lines[1::2], strict=True)]


MARK = "=== answers ==="
MARKED_CURL = "curl -s -w '\\n%{http_code}\\n'"


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


@pytest.mark.parametrize("link", re.findall(r"\]\(((?:docs|CHANGELOG)[^)#]*)\)", README))
def test_the_readmes_links_lead_somewhere(link: str) -> None:
    assert (REPOSITORY / link).is_file()
