"""What becomes of a bundle that somebody has changed, or that somebody else has made.

    python -m scripts.prove.bundles --positions 400

Each is installed without a signature and with `--trust`; opens no connection, takes half a minute.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scripts.prove.tables import options, print_table
from tests.catalog import FILES, card_table, pins, write_model
from tests.command_line import run


class Attack(NamedTuple):
    """How two installations of one bundle ended: `installed`, or why not."""

    name: str
    untrusting: str
    trusting: str


class Site:
    """A folder with keys, models, a bundle `b`, and lists of keys that count or are revoked."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self.sig = folder, folder / "b", folder / "b.sig"
        (folder / "empty").mkdir()
        for key in ("ours", "theirs"):
            self.ssh("-t", "ed25519", "-N", "", "-f", folder / key)
        for name in ("good", "evil"):
            files = {**FILES, "model.safetensors": name.encode()}
            write_model(folder / name, card_table(files=pins(files)), files)
        self.public = (folder / "ours.pub").read_text()

    def ssh(self, *arguments: str | Path) -> None:
        subprocess.run(["ssh-keygen", "-q", *arguments], check=True, capture_output=True)

    def make(self, models: str, key: str) -> tuple[bytes, bytes]:
        """A bundle of these models and its signature."""
        flags = ("--models-dir", self.folder / models, "--force", "--sign", self.folder / key)
        assert run("bundle", "create", "tiny", "-o", self.bundle, *flags).exit_code == 0
        return self.bundle.read_bytes(), self.sig.read_bytes()

    def put(self, content: bytes, sig: bytes | None = None, trust: str = "", no: str = "") -> None:
        """Lay down a bundle; `ours` counts with these options; revoke `no`. No bytes: a pipe."""
        self.bundle.write_bytes(content)
        self.sig.unlink(missing_ok=True)
        if sig is not None:
            self.sig.write_bytes(sig) if sig else os.mkfifo(self.sig)
        (self.folder / "trusted").write_text(f"maker@site {trust} {self.public}")
        (self.folder / "revoked").write_text(no)

    def install(self, *flags: str | Path) -> str:
        """`installed`, or the reason of the refusal; nothing may be there then."""
        with tempfile.TemporaryDirectory(dir=self.folder) as data:
            there = ("--models-dir", self.folder / "empty", "--data-dir", data)
            outcome = run("bundle", "install", self.bundle, *there, *flags)
            models = [path.name for path in Path(data).glob("models/*")]
        if outcome.exit_code == 0:
            return "installed"
        assert (outcome.exit_code, outcome.stdout, models) == (2, "", []), outcome
        (line,) = outcome.stderr.splitlines()
        return line.removeprefix("embedding-server: ").replace(f"{self.folder}/", "")


def attack(positions: int) -> Iterator[Attack]:
    """Attack a bundle in each way, and by one bit at so many places."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        trust = ("--trust", site.folder / "trusted", "--trust-revoked", site.folder / "revoked")
        for name, lay_down in _attacks(site, positions).items():
            lay_down()
            trusting = site.install(*trust)
            site.sig.unlink(missing_ok=True)
            yield Attack(name, site.install(), trusting)


def _attacks(site: Site, positions: int) -> dict[str, Callable[[], None]]:
    (good, sig), (evil, evil_sig) = site.make("good", "ours"), site.make("evil", "ours")
    site.bundle.write_bytes(good)
    site.sig.unlink()
    site.ssh("-Y", "sign", "-n", "git", "-f", site.folder / "ours", site.bundle)
    git_sig = site.sig.read_bytes()
    put = partial(partial, site.put)
    found: dict[str, Callable[[], None]] = {
        "nothing": put(good, sig),
        "other weights, made anew, the old signature": put(evil, sig),
        "other weights, signed by a stranger": put(*site.make("evil", "theirs")),
        "the signature taken away": put(good),
        "a named pipe in place of the signature": put(good, b""),
        "the signature of another bundle of ours": put(good, evil_sig),
        "our signature for git": put(good, git_sig),
        "bytes behind the end": put(good + bytes(512), sig),
        "the last byte cut off": put(good[:-1], sig),
        "a key that has expired": put(good, sig, 'valid-before="20200101"'),
        "a key that is not valid yet": put(good, sig, 'valid-after="20990101"'),
        "a key that counts for git only": put(good, sig, 'namespaces="git"'),
        "a key that is revoked": put(good, sig, no=site.public),
    }
    for at in random.Random(7).sample(range(len(good)), positions):
        changed = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
        found[f"one bit, at {at:,}"] = put(changed, sig)
    return found


def _rows(positions: int) -> Iterator[tuple[str, str, str]]:
    bits = []
    for one in attack(positions):
        if one.name.startswith("one bit"):
            bits.append(one)
        else:
            yield one
    plain, trusting = (sum(each[end] != "installed" for each in bits) for end in (1, 2))
    yield f"one bit, at {len(bits)} places", f"{plain} refused", f"{trusting} refused"


def main() -> None:
    """Print what became of each bundle, those with one changed bit together."""
    columns = ("what was changed", "without a signature", "with `--trust`")
    print_table(columns, _rows(options(__doc__, positions=400).positions))


if __name__ == "__main__":
    main()
