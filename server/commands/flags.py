"""Command-line flags made from the settings' declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_origin

import typer
from pydantic import SecretStr

from server.errors import SettingError
from server.settings import ENV_PREFIX, Settings, load_settings

FOLDERS = ("models_dir", "data_dir")  # settings that tell where models lie
TRUST = ("trust", "trust_revoked")  # and whose bundles count

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar=ENV_PREFIX + "CONFIG", help="TOML file with settings.", metavar="FILE"
    ),
]
# Of the commands that compute models once more.
Witnessing = Annotated[
    bool,
    typer.Option(
        "--witness",
        help="Compute some texts once more with numpy, straight from the weights, and compare.",
    ),
]


def flag(name: str) -> inspect.Parameter:
    """The flag of one setting; pydantic checks its text, so that all sources share the rules."""
    field = Settings.model_fields[name]
    many = _is_list(name)
    switch = field.annotation is bool
    default = field.get_default(call_default_factory=False)
    if isinstance(default, SecretStr):  # the default of a secret is none
        default = default.get_secret_value()
    shown = (
        f" (default: {default})" if not (many or default is None or field.default_factory) else ""
    )
    spelled = name.replace("_", "-")
    option = typer.Option(
        f"--{spelled}/--no-{spelled}" if switch else f"--{spelled}",
        help=f"{field.description}{shown}",
        show_default=False,
        metavar=None if switch else spelled.rsplit("-", 1)[-1].upper(),
    )
    # All are lists here: of a flag given twice typer would take the last one without a word.
    kind: Any = bool if switch else list[str]
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _is_list(name: str) -> bool:
    return get_origin(Settings.model_fields[name].annotation) is list


def _only(name: str, values: list[str]) -> str:
    if len(values) > 1:
        flag = name.replace("_", "-")
        raise SettingError(f"setting {name} (--{flag}): takes one value, not {len(values)}")
    return values[0]


def with_flags(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for each of these settings and pass it the resulting Settings.

    The command's first parameter is the Settings; what else it has become its own flags.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(config: Path | None, **given: Any) -> None:
            flags = {name: given.pop(name) for name in names}
            flags = {name: value for name, value in flags.items() if value not in (None, [])}
            for name, value in flags.items():
                if isinstance(value, list) and not _is_list(name):
                    flags[name] = _only(name, value)
            command(load_settings(flags, config), **given)

        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        config = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        signature = inspect.Signature([*own, *map(flag, names), config])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
