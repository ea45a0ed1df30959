"""Groups of commands whose modules are imported when one of their commands is called."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from server.program.termination import ending_at_once


def commands_on_demand(places: Mapping[str, str]) -> type[TyperGroup]:
    """A class of groups that hold these commands behind those they were made with.

    Args:
        places: by the name of each command, where it is: `module:attribute`, which is a function
            or a `Typer` with commands of its own.
    """

    class CommandsOnDemand(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            made_at_once = [name for name in super().list_commands(ctx) if name not in places]
            return [*made_at_once, *places]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name in places and cmd_name not in self.commands:
                self.commands[cmd_name] = _load(cmd_name, places[cmd_name])
            return super().get_command(ctx, cmd_name)

        def resolve_command(self, ctx: Any, args: list[str]) -> Any:
            if self.get_command(ctx, args[0]) is None:
                for name in places:  # what a message suggests is looked for among all of them
                    self.get_command(ctx, name)
            return super().resolve_command(ctx, args)

    return CommandsOnDemand


@functools.cache
def _load(
    name: str, place: str
) -> Any:  # typer has click's classes inside, or click beside, by its version
    module, attribute = place.split(":")
    with ending_at_once():  # nothing is begun yet
        found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        group = typer.main.get_group(found)
        group.name = name
        return group
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name)(found)
    return typer.main.get_command(alone)
