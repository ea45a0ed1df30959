"""Write the tables of docs/reference from the declarations in the code.

    make reference      # or: python -m scripts.reference

Each table stands between `<!-- generated: NAME -->` and `<!-- /generated -->`; the rest of a page
is written by hand. Reads declarations only: no model is loaded and no port is opened.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from pydantic import SecretStr

from server.catalog.prompts import PURPOSES
from server.commands.cli import app as command_line
from server.errors import ApiError, EmbeddingServerError, StartupError
from server.http.app import create_app
from server.metrics import Metrics
from server.program.declared_metrics import PREFIX
from server.settings import Settings

PAGES = Path(__file__).resolve().parent.parent / "docs" / "reference"

Schema = dict[str, Any]  # JSON Schema, as pydantic and OpenAPI write it
AnyError = TypeVar("AnyError", bound=EmbeddingServerError)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in escaped)


def spelled(schema: Schema) -> str:
    """The values that a schema allows, in JSON Schema's words, with its bounds."""
    if "anyOf" in schema:
        return "; ".join(spelled(kind) for kind in schema["anyOf"] if kind["type"] != "null")
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind: str = schema["type"]
    suffix = {"string": "Length", "array": "Items"}.get(kind, "imum")
    signs = {f"min{suffix}": "≥", "exclusiveMinimum": ">", f"max{suffix}": "≤"}
    found = ", ".join(f"{sign} {schema[key]:,}" for key, sign in signs.items() if key in schema)
    elements = f" of {spelled(schema['items'])}" if "items" in schema else ""
    return kind + (f" ({found})" if found else "") + elements


def settings_table() -> str:
    """Every setting: values, default and meaning."""
    schemas = Settings.model_json_schema()["properties"]
    rows = []
    for name, field in Settings.model_fields.items():
        # The folders' defaults depend on the machine; their meaning tells them.
        default = None if name.endswith("_dir") else field.get_default(call_default_factory=True)
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        values = default if isinstance(default, list) else [] if default is None else [default]
        shown = (str(one).lower() if isinstance(one, bool) else one for one in values)
        told = ", ".join(f"`{one}`" for one in shown) or "none"
        rows.append((f"`{name}`", spelled(schemas[name]), told, field.description or ""))
    return table(("setting", "values", "default", "meaning"), rows)


def metrics_table() -> str:
    """Every metric of this server's own: kind, labels and meaning."""
    rows = []
    for family in Metrics(["model"], ["model"]).families():
        if not family.name.startswith(f"{PREFIX}_"):
            continue
        name = family.name.removeprefix(f"{PREFIX}_")
        total = "_total" if family.type == "counter" else ""
        labels = [label for label in family.samples[0].labels if label != "le"]
        shown = ", ".join(f"`{label}`" for label in labels)
        rows.append((f"`{name}{total}`", family.type, shown, family.documentation))
    return table(("metric", "type", "labels", "meaning"), rows)


def errors_under(root: type[AnyError]) -> Iterator[type[AnyError]]:
    """The errors that the server declares under `root`, in the order of their declaration."""
    for error in root.__subclasses__():
        if error.__module__ == root.__module__:
            yield error
            yield from errors_under(error)


def _first_line(error: type[EmbeddingServerError]) -> str:
    return (error.__doc__ or "").partition("\n")[0]


def api_errors_table() -> str:
    """Every error of the HTTP API: status, type, code and meaning."""
    rows = []
    for error in errors_under(ApiError):
        code = f"`{error.code}`" if error.code else "none"
        rows.append((str(error.status), f"`{error.type}`", code, _first_line(error)))
    return table(("status", "type", "code", "when"), sorted(rows, key=lambda row: row[0]))


def startup_errors_table() -> str:
    """Every error with which a command stops."""
    rows = [(f"`{error.__name__}`", _first_line(error)) for error in errors_under(StartupError)]
    return table(("error", "when"), rows)


def openapi() -> Schema:
    """The server's own description of its HTTP API."""
    with tempfile.TemporaryDirectory() as folder:
        return create_app(Settings(data_dir=Path(folder))).openapi()


def routes_table() -> str:
    """Every route: methods, path and meaning."""
    rows = []
    for path, operations in openapi()["paths"].items():
        (meaning,) = {operation["description"] for operation in operations.values()}
        rows.append((", ".join(map(str.upper, operations)), f"`{path}`", meaning))
    return table(("methods", "path", "meaning"), rows)


def embedding_request_table() -> str:
    """Every field of the body of POST /v1/embeddings."""
    body = openapi()["paths"]["/v1/embeddings"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    rows = []
    for name, field in schema["properties"].items():
        required = "required" if name in schema["required"] else ""
        rows.append((f"`{name}`", required, spelled(field), field["description"]))
    return table(("field", "", "values", "meaning"), rows)


def purposes_table() -> str:
    """Every purpose of a text, and its other names."""
    rows = []
    for purpose, names in PURPOSES.items():
        others = (f"`{name}`" for name in names if name != purpose)
        rows.append((f"`{purpose}`", ", ".join(others)))
    return table(("purpose", "other names"), rows)


def commands_text() -> str:
    """Every command with its arguments and options, the settings among them only by name."""
    root = typer.main.get_command(command_line)
    context = root.make_context("embedding-server", [], resilient_parsing=True)
    return "\n\n".join(_commands_under(root, context))


def _commands_under(group: Any, context: Any) -> Iterator[str]:
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        here = type(context)(command, parent=context, info_name=name)
        if hasattr(command, "list_commands"):
            yield from _commands_under(command, here)
        else:
            yield _command_text(command, here)


def _command_text(command: Any, context: Any) -> str:
    rows, settings = [], []
    for parameter in command.params:
        spelling, meaning = parameter.get_help_record(context)
        field = Settings.model_fields.get(parameter.name)
        if parameter.name == "config" or (field and meaning.startswith(field.description)):
            settings.append(f"`{spelling.split()[0]}`")
        else:
            rows.append((f"`{spelling}`", " ".join(meaning.split())))
    blocks = [f"## {context.command_path}", command.help]
    if rows:
        blocks.append(table(("argument or option", "meaning"), rows))
    if settings:
        blocks.append(f"[Settings](settings.md): {', '.join(settings)}.")
    return "\n\n".join(blocks)


SECTIONS: dict[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "api-errors": api_errors_table,
    "startup-errors": startup_errors_table,
    "routes": routes_table,
    "embedding-request": embedding_request_table,
    "purposes": purposes_table,
    "commands": commands_text,
}
_SECTION = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- /generated -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """The page with each of its generated sections as the code declares it now.

    Raises:
        KeyError: the page names a section that is not in SECTIONS.
    """
    return _SECTION.sub(lambda found: f"{found[1]}{SECTIONS[found[2]]()}\n{found[3]}", page)


def main() -> None:
    """Write the sections of all pages anew."""
    for path in sorted(PAGES.glob("*.md")):
        path.write_text(with_tables(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
