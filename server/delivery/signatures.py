"""Signatures of bundles, by OpenSSH: `ssh-keygen -Y`, which people can run without this software.

A signature is a file of its own beside the bundle and covers every byte of it, so that it can be
verified before anything is read out of it. Who may sign is told by a file of OpenSSH's form
`allowed_signers`. Knows nothing of what is in a bundle. Not for several threads.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from server.errors import BundleError, unusable

NAMESPACE: Final = (
    "embedding-server-bundle"  # what a key signs for others, git say, counts for nothing
)
_PROGRAM: Final = "ssh-keygen"
_NO_PROGRAM: Final = "signatures need ssh-keygen of OpenSSH 8.9 or newer, and there is none here"
_SUFFIX: Final = ".sig"
_MAX_SIGNATURE_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20
_GOOD = re.compile(
    r'Good "[^"]*" signature (?:for (?P<signer>.+) )?with (?P<key>\S+ key SHA256:\S+)'
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature that fits says.

    `sha256` is the digest of the bytes that it was compared with, `key` the key's kind and
    fingerprint; `signer` is None where nobody said whose keys count.
    """

    sha256: str
    key: str
    signer: str | None


def signature_of(bundle: Path) -> Path:
    """Where the signature of a bundle lies, if it has one."""
    return bundle.with_name(bundle.name + _SUFFIX)


def open_regular(file: Path, subject: str) -> BinaryIO:
    """Open a file for reading; never wait for one that is no file, a named pipe say.

    Args:
        subject: what messages call it.

    Raises:
        BundleError: it cannot be read, or is no regular file.
    """
    try:
        # Windows has no named pipes among its files, but tells text from bytes.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        opened = os.open(file, flags)
    except OSError as error:
        raise BundleError(unusable(f"{subject} {file}", error)) from error
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise BundleError(f"{subject} {file} is no regular file")
    return os.fdopen(opened, "rb")


def has_program() -> bool:
    """Whether there is an ssh-keygen to look at signatures with."""
    return _program() is not None


def check_can_sign(key: Path) -> None:
    """Refuse a key that cannot be read, as far as one can tell before minutes of work.

    Raises:
        BundleError: there is no such file, or no ssh-keygen.
    """
    open_regular(key, "key").close()
    if not has_program():
        raise BundleError(_NO_PROGRAM)


def sign(bundle: Path, key: Path, sha256: str) -> str:
    """Sign a bundle; its signature appears beside it, in the place of an older one.

    A passphrase is asked for on the terminal; of a public key the agent must hold the private one.

    Args:
        sha256: the digest of the bundle as it was written; nothing else is signed.

    Returns:
        The key's kind and fingerprint.

    Raises:
        BundleError: the bundle has changed, or it could not be signed.
    """
    place = signature_of(bundle)
    on_terminal = sys.stderr.isatty()  # a key in hardware tells there that it waits for a touch
    with tempfile.TemporaryDirectory(prefix="embedding-server-") as scratch:
        alias = Path(scratch, "bundle")
        alias.symlink_to(bundle.absolute())
        outcome = _run(
            ["-q", "-Y", "sign", "-f", str(key), "-n", NAMESPACE, str(alias)],
            stderr=None if on_terminal else subprocess.PIPE,
        )
        if outcome.returncode != 0:
            raise BundleError(
                f"{bundle} is written, but not signed: {_complaint(outcome) or 'ssh-keygen failed'}"
            )
        content = signature_of(alias).read_bytes()
        with bundle.open("rb") as opened:
            signed = _check(opened, content, ["check-novalidate"], bundle)
    if signed.sha256 != sha256:
        raise BundleError(f"{bundle} has changed since it was written, and is not signed")
    try:
        place.write_bytes(content)
    except OSError as error:
        raise BundleError(
            unusable(f"{bundle} is written, but not signed: {place}", error)
        ) from error
    return signed.key


def verify(
    bundle: BinaryIO,
    path: Path,
    trust: Path,
    revoked: Path | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> Signed:
    """Verify that one of the keys that are trusted has signed all bytes of a bundle.

    Args:
        bundle: open for reading; read from its beginning to its end.
        path: where it lies, its signature beside it.
        trust: whose keys count: principals, keys, namespaces and times, as `allowed_signers`.
        revoked: keys that count no more: a KRL, or public keys, one a line.
        report: called with the number of bytes read since the last call.

    Raises:
        BundleError: it is not signed, or not by a key that counts now and for bundles.
    """
    content = _read_signature(path)
    if content is None:
        raise BundleError(
            f"bundle {path} is not signed, and {trust} says whose signature it must have: "
            f"there is no {signature_of(path)}"
        )
    for file, what in ((trust, "trust"), (revoked, "trust_revoked")):
        if file is not None:
            open_regular(file, what).close()
    options = ["-f", str(trust)]
    with tempfile.NamedTemporaryFile(prefix="embedding-server-") as kept:
        kept.write(content)
        kept.flush()
        found = _run(["-Y", "find-principals", "-s", kept.name, *options])
    # They stand in one line of the file, so that any will do; a pattern matches itself.
    principals = os.fsdecode(found.stdout).splitlines()
    if found.returncode != 0 or not principals:
        key = _check(bundle, content, ["check-novalidate"], path, report).key
        raise BundleError(
            f"bundle {path} is signed with {key}, which does not count by {trust}: "
            f"{_complaint(found) or 'it stands there without a name'}"
        )
    action = ["verify", *options, "-I", principals[0]]
    if revoked is not None:
        action += ["-r", str(revoked)]
    return _check(bundle, content, action, path, report, revoked)


def look_at(bundle: BinaryIO, path: Path, report: Callable[[int], None]) -> Signed | None:
    """Whose signature lies beside a bundle, where nobody says whose counts; None if there is none.

    Raises:
        BundleError: what lies there is no signature of these bytes.
    """
    content = _read_signature(path)
    if content is None:
        return None
    return _check(bundle, content, ["check-novalidate"], path, report)


def _check(
    bundle: BinaryIO,
    signature: bytes,
    action: list[str],
    path: Path,
    report: Callable[[int], None] = lambda _: None,
    revoked: Path | None = None,
) -> Signed:
    """Have ssh-keygen compare a signature with what is read here, so that its digest is known."""
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(prefix="embedding-server-") as kept:
        kept.write(signature)
        kept.flush()
        command = ["-Y", *action, "-n", NAMESPACE, "-s", kept.name]
        with _start(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            assert running.stdin
            good_for_all = True
            try:
                while chunk := bundle.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    report(len(chunk))
                    running.stdin.write(chunk)
            except BrokenPipeError:
                good_for_all = False  # it has seen enough, and says below why
            except OSError as error:
                running.kill()
                raise BundleError(unusable(f"bundle {path}", error)) from error
            outcome = _ended(running)
    good = _GOOD.match(outcome.stdout.decode("utf-8", "replace"))
    if outcome.returncode == 0 and good is not None and good_for_all:
        signer = good["signer"] and _shown(good["signer"])
        return Signed(digest.hexdigest(), good["key"], signer)
    silent = "ssh-keygen gives no reason"
    if revoked is not None:  # of which it says nothing
        silent = f"its key is revoked, or {revoked} is no list of revoked keys"
    reason = _complaint(outcome) or silent
    raise BundleError(f"bundle {path}: {signature_of(path)} does not count for it: {reason}")


def _read_signature(bundle: Path) -> bytes | None:
    place = signature_of(bundle)
    if not os.path.lexists(place):
        return None
    try:
        with open_regular(place, "signature") as opened:
            content = opened.read(_MAX_SIGNATURE_BYTES + 1)
    except OSError as error:
        raise BundleError(unusable(f"signature {place}", error)) from error
    if len(content) > _MAX_SIGNATURE_BYTES:
        raise BundleError(f"{place} is no signature: it has over {_MAX_SIGNATURE_BYTES} bytes")
    return content


def _program() -> str | None:
    """The program's absolute path: one in the folder of the bundle, where people work, counts not."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    return shutil.which(_PROGRAM, path=os.pathsep.join(filter(os.path.isabs, folders)))


def _run(
    arguments: list[str], stderr: int | None = subprocess.PIPE
) -> subprocess.CompletedProcess[bytes]:
    with _start(arguments, stdin=None, stderr=stderr) as running:
        return _ended(running)


def _start(arguments: list[str], stdin: int | None, stderr: int | None) -> subprocess.Popen[bytes]:
    program = _program()
    if program is None:
        raise BundleError(_NO_PROGRAM)
    return subprocess.Popen(
        [program, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "LC_ALL": "C"},
    )


def _ended(running: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
    out, errors = running.communicate()
    return subprocess.CompletedProcess(running.args, running.returncode, out, errors)


def _complaint(outcome: subprocess.CompletedProcess[bytes]) -> str:
    """The first line that it wrote to standard error, safe to show; empty if none."""
    text = (outcome.stderr or b"").decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0].removeprefix("Enter passphrase: ") if lines else ""
    return _shown(first)


def _shown(text: str) -> str:
    """What a file or a certificate says, without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
