"""What the documents say is so: examples run, and the table of settings is complete."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from pydantic import SecretStr

from server.metrics import PREFIX, Metrics
from server.settings import Settings
from tests.conftest import PLAIN, REPOSITORY
from tests.server_process import ServerProcess

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(
    r"^```(sh|python|js)\n(.*?)^```",
    README.split("## Use it")[1].split("## Models")[0],
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


@pytest.mark.parametrize("link", re.findall(r"\]\(((?:docs|CHANGELOG)[^)#]*)\)", README))
def test_the_readmes_links_lead_somewhere(link: str) -> None:
    assert (REPOSITORY / link).is_file()
