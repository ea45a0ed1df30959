"""What becomes of a bundle that somebody has changed, or that somebody else has made.

    python -m scripts.prove.bundles --positions 400

Each is installed twice: as it is, without a word about signatures, and with `--trust`. Opens no
connection, and ends within a minute; prints a table.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from server.delivery.signatures import NAMESPACE
from tests.catalog import FILES, card_table, pins, write_model
from tests.command_line import run


class Attack(NamedTuple):
    """How two installations of one bundle ended: `installed`, or why not."""

    name: str
    untrusting: str
    trusting: str


class Site:
    """A folder with keys, models, and a bundle `b` that `ours` has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self.sig = folder, folder / "b", folder / "b.sig"
        for key in ("ours", "theirs"):
            self.ssh("-q", "-t", "ed25519", "-N", "", "-C", key, "-f", folder / key)
        for name, weights in (("good", b"some weights"), ("evil", b"evil weights")):
            files = {**FILES, "model.safetensors": weights}
            write_model(folder / name, card_table(files=pins(files)), files)
        self.trust_ours('namespaces="*"')
        self.made = {name: self.make(name, "ours") for name in ("good", "evil")}
        (folder / "krl").touch()

    def ssh(self, *arguments: str | Path) -> None:
        subprocess.run(["ssh-keygen", *arguments], check=True, capture_output=True)

    def make(self, models: str, key: str) -> tuple[bytes, bytes]:
        """A bundle of these models and its signature."""
        flags = ("--models-dir", self.folder / models, "--force", "--sign", self.folder / key)
        made = run("bundle", "create", "tiny", "-o", self.bundle, *flags)
        assert made.exit_code == 0, made.stderr
        return self.bundle.read_bytes(), self.sig.read_bytes()

    def trust_ours(self, options: str) -> None:
        """Say that `ours` counts, with these options of OpenSSH."""
        public = (self.folder / "ours.pub").read_text()
        (self.folder / "trusted").write_text(f"maker@site {options} {public}")

    def put(self, content: bytes, signature: bytes | None = None) -> None:
        """Lay these bytes down as the bundle, with this signature or none."""
        self.bundle.write_bytes(content)
        self.sig.unlink(missing_ok=True)
        if signature is not None:
            self.sig.write_bytes(signature)

    def install(self, *flags: str | Path) -> str:
        """`installed`, or the reason of the refusal; nothing may be there then."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as data:
            there = ("--models-dir", empty, "--data-dir", data)
            outcome = run("bundle", "install", self.bundle, *there, *flags)
            models = [path.name for path in Path(data).glob("models/*")]
        if outcome.exit_code == 0:
            return "installed"
        assert (outcome.exit_code, outcome.stdout, models) == (2, "", []), outcome
        (line,) = outcome.stderr.splitlines()
        return line.removeprefix("embedding-server: ").replace(f"{self.folder}/", "")


def _attacks(site: Site, positions: int) -> dict[str, Callable[[], object]]:
    (good, good_sig), (evil, evil_sig) = site.made["good"], site.made["evil"]
    by_theirs = site.make("evil", "theirs")
    for_git = site.folder / "git"
    for_git.write_bytes(good)
    site.ssh("-q", "-Y", "sign", "-n", "git", "-f", site.folder / "ours", for_git)
    git_sig = for_git.with_name("git.sig").read_bytes()

    def validity(options: str, revoked: str = "") -> None:
        site.put(good, good_sig)
        site.trust_ours(options)
        (site.folder / "krl").write_text(revoked)

    anywhere = random.Random(7).sample(range(len(good)), positions)

    def changed(at: int) -> bytes:
        return good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]

    return {
        "nothing": lambda: site.put(good, good_sig),
        "other weights, made anew, the old signature": lambda: site.put(evil, good_sig),
        "other weights, signed by a stranger": lambda: site.put(*by_theirs),
        "the signature taken away": lambda: site.put(good),
        "the signature of another bundle of ours": lambda: site.put(good, evil_sig),
        "our signature for git": lambda: site.put(good, git_sig),
        "bytes behind the end": lambda: site.put(good + bytes(512), good_sig),
        "the last byte cut off": lambda: site.put(good[:-1], good_sig),
        "a key that has expired": lambda: validity('valid-before="20200101"'),
        "a key that is not valid yet": lambda: validity('valid-after="20990101"'),
        "a key that counts for git only": lambda: validity('namespaces="git"'),
        "a key that is revoked": lambda: validity("", (site.folder / "ours.pub").read_text()),
        **{f"one bit, at {at:,}": partial(site.put, changed(at), good_sig) for at in anywhere},
    }


def attack(positions: int) -> Iterator[Attack]:
    """Attack a bundle in each way, and by one bit at so many places."""
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        for name, lay_down in _attacks(site, positions).items():
            site.trust_ours(f'namespaces="{NAMESPACE}"')
            (site.folder / "krl").write_text("")
            lay_down()
            flags = ("--trust", site.folder / "trusted", "--trust-revoked", site.folder / "krl")
            trusting = site.install(*flags)
            site.sig.unlink(missing_ok=True)
            yield Attack(name, site.install(), trusting)


def main() -> None:
    """Print what became of each bundle, those with one changed bit together."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=400)
    told = list(attack(parser.parse_args().positions))
    print("| what was changed | without `--trust` | with `--trust` |\n|---|---|---|")
    bits = [one for one in told if one.name.startswith("one bit")]
    for one in told[: len(told) - len(bits)]:
        print(f"| {one.name} | {one.untrusting} | {one.trusting} |")
    if bits:
        refused = [
            sum(end != "installed" for end in ends)
            for ends in ([one.untrusting for one in bits], [one.trusting for one in bits])
        ]
        cells = " | ".join(f"{count} refused" for count in refused)
        print(f"| one bit, at {len(bits)} places | {cells} |")


if __name__ == "__main__":
    main()
