"""How far a file was embedded, so that an interrupted run can go on where it stopped.

Lies as JSON beside the output and is replaced as a whole, so that it is always one or the other.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from server.delivery.syncing import sync_folder
from server.errors import OutputFileError
from server.offline.texts import START, Mark

Fact = str | int | bool | None
# What may be switched on later: nothing before was refused for it, so nothing was changed by it.
_SWITCHES = ("truncate", "skip_blank")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place in the input, the output's size there, and all that decides the output's bytes."""

    facts: dict[str, Fact]
    input: Mark = START
    output_bytes: int = 0

    def check_facts(self, facts: dict[str, Fact]) -> None:
        """Raise OutputFileError, naming what differs, unless a run with these gives the same."""
        for name, now in facts.items():
            before = self.facts.get(name)
            if before != now and not (name in _SWITCHES and now):
                raise OutputFileError(
                    f"cannot resume: {name} was {before!r} when the output was begun, and is "
                    f"{now!r} now"
                )

    def save(self, path: Path) -> None:
        """Write it for good; raises OSError."""
        scratch = path.with_name(path.name + ".writing")
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(asdict(self) | {"input": self.input._asdict()}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        sync_folder(path.parent)


def checkpoint_of(output: Path) -> Path:
    """Where an output's checkpoint lies."""
    return output.with_name(output.name + ".checkpoint")


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint, None if there is none.

    Raises:
        OutputFileError: the file is something else.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        mark = Mark(**fields["input"])
        return Checkpoint(dict(fields["facts"]), mark, int(fields["output_bytes"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputFileError(f"{path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise OutputFileError(f"{path} is no checkpoint: {error!r}") from None
