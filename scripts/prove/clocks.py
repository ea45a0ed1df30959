"""A wall clock that is set while a server serves: who is let in, and what is said, as a table.

    python -m scripts.prove.clocks            # two minutes: each limit is waited for

Starts a server of its own on loopback, whose clock libfaketime sets, and ends it.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.prove.clients import SERVE, embed
from scripts.prove.tables import options, print_table
from server.access.database import Database
from server.access.key_store import KeyStore
from server.access.keys import Limits
from tests.server_process import ServerProcess
from tests.services import FakedClock
from tests.waiting import wait_for

HOUR_S = 3600
# What it differs by from the true time.
SETTINGS_S = {"set back an hour": -HOUR_S, "then forward two hours": HOUR_S}


class Outcome(NamedTuple):
    """What clients with keys are answered after the clock was set."""

    clock: str
    retry_after_s: int  # of a key whose minute was spent before, 0 if it was let in
    after_waiting: int  # what it is answered then
    ending: int  # a key with half an hour left
    ended: int  # a key whose time was over for half an hour
    said: str  # by the log


def attack(folder: Path, *, wait: bool) -> Iterator[Outcome]:
    """Set the clock of a server, and ask.

    Args:
        wait: as long as the server says that a spent minute lasts.
    """
    clock = FakedClock(folder / "clock")
    url, now = f"sqlite:///{folder / 'keys.db'}", int(time.time())
    with closing(Database(url)) as database:
        store = KeyStore(database)
        limited = store.create("limited", limits=Limits(requests_per_minute=1))[1]
        ending = store.create("ending", expires_at=now + HOUR_S // 2)[1]
        ended = store.create("ended", expires_at=now - HOUR_S // 2)[1]
    flags = (*SERVE, "--database-url", url)
    with ServerProcess(*flags, environment=clock.environment) as server:

        def said() -> list[str]:
            return re.findall(r"jumped \d+ s \w+", server.log())

        def has_said(times: int) -> bool:
            return len(said()) >= times

        for times, (name, difference_s) in enumerate(SETTINGS_S.items(), 1):
            embed(server, limited)
            clock.set(difference_s)
            wait_for(partial(has_said, times), "a line about the clock")
            answer = embed(server, limited)
            retry_after_s = int(answer.headers.get("retry-after", 0))
            if wait:
                time.sleep(retry_after_s)
                answer = embed(server, limited)
            yield Outcome(
                name, retry_after_s, answer.status_code,
                embed(server, ending).status_code, embed(server, ended).status_code, said()[-1],
            )  # fmt: skip


def main() -> None:
    """Print the table."""
    options(__doc__)
    columns = ("clock", "Retry-After, s", "then", "key with 30 min left", "30 min over", "log")
    with tempfile.TemporaryDirectory() as folder:
        print_table(columns, attack(Path(folder), wait=True))


if __name__ == "__main__":
    main()
