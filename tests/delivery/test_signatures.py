"""Signatures by the real ssh-keygen, made and verified."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.delivery import signatures
from server.delivery.signatures import NAMESPACE, Signed, sign, verify
from server.errors import BundleError

CONTENT = bytes(range(256)) * 40


class Site:
    """A folder with a file, and with keys made by ssh-keygen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "file"
        self.file.write_bytes(CONTENT)
        self.sig = folder / "file.sig"
        self.trusted = folder / "trusted"

    def key(self, name: str, passphrase: str = "") -> Path:
        path = self.folder / name
        ssh_keygen("-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", path)
        return path

    def trust(self, key: Path, line: str = "maker@site", more: str = "") -> None:
        public = key.with_suffix(".pub").read_text()
        self.trusted.write_text(f"{more}{line} {public}")

    def sign(self, key: Path) -> str:
        return sign(self.file, key, hashlib.sha256(self.file.read_bytes()).hexdigest())

    def verify(self, revoked: Path | None = None) -> Signed:
        with self.file.open("rb") as opened:
            return verify(opened, self.file, self.trusted, revoked)

    def refused(self, revoked: Path | None = None) -> str:
        with pytest.raises(BundleError) as caught:
            self.verify(revoked)
        assert caught.value.message.isprintable()
        return caught.value.message


def ssh_keygen(*arguments: str | Path, stdin: bytes = b"") -> str:
    outcome = subprocess.run(
        ["ssh-keygen", *arguments], input=stdin, capture_output=True, check=True
    )
    return outcome.stdout.decode()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Its file is signed by `ours`, which it trusts."""
    made = Site(tmp_path)
    ours = made.key("ours")
    made.sign(ours)
    made.trust(ours)
    return made


class TestSigning:
    def test_plain_ssh_keygen_verifies_what_is_signed(self, site: Site) -> None:
        where = ("-f", site.trusted, "-I", "maker@site", "-n", NAMESPACE, "-s", site.sig)
        assert ssh_keygen("-Y", "verify", *where, stdin=CONTENT).startswith(f'Good "{NAMESPACE}"')
        with pytest.raises(subprocess.CalledProcessError):
            ssh_keygen("-Y", "verify", *where, stdin=CONTENT + b"\n")

    def test_what_plain_ssh_keygen_signs_is_verified(self, site: Site) -> None:
        site.sig.unlink()
        ssh_keygen("-Y", "sign", "-n", NAMESPACE, "-f", site.folder / "ours", site.file)
        digest = hashlib.sha256(CONTENT).hexdigest()
        listed = ssh_keygen("-l", "-f", site.folder / "ours.pub")
        found = site.verify()
        assert (found.sha256, found.signer) == (digest, "maker@site")
        assert found.key.removeprefix("ED25519 key ") in listed

    def test_a_file_that_is_not_the_one_that_was_written_is_not_signed(self, site: Site) -> None:
        site.sig.unlink()
        with pytest.raises(BundleError, match="has changed since it was written, and is not"):
            sign(site.file, site.folder / "ours", "0" * 64)
        assert not site.sig.exists()

    def test_a_passphrase_is_asked_for(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        locked = site.key("locked", "secret words")
        program = site.folder / "ask"
        program.write_text("#!/bin/sh\necho $ANSWER\n")
        program.chmod(0o700)
        for name, value in {"SSH_ASKPASS": str(program), "SSH_ASKPASS_REQUIRE": "force"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ANSWER", "wrong words")
        with pytest.raises(BundleError, match=r"not signed: .*incorrect passphrase"):
            site.sign(locked)
        monkeypatch.setenv("ANSWER", "secret words")
        site.sign(locked)
        site.trust(locked)
        assert site.verify().signer == "maker@site"

    def test_a_public_key_means_the_one_that_the_agent_holds(
        self, site: Site, agent: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in agent.items():
            monkeypatch.setenv(name, value)
        private = site.folder / "ours"
        subprocess.run(["ssh-add", "-q", private], check=True, capture_output=True)
        private.unlink()
        site.sign(site.folder / "ours.pub")
        assert site.verify().signer == "maker@site"
        subprocess.run(["ssh-add", "-q", "-D"], check=True, capture_output=True)
        with pytest.raises(BundleError, match="is written, but not signed: No private key found"):
            site.sign(site.folder / "ours.pub")

    @pytest.fixture
    def agent(self, tmp_path: Path) -> Iterator[dict[str, str]]:
        """The environment of an agent that ends with the test."""
        told = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True)
        found = dict(re.findall(r"(SSH_\w+)=([^;]+);", told.stdout))
        yield found
        os.kill(int(found["SSH_AGENT_PID"]), 15)

    def test_what_cannot_sign_is_told_before_the_work(self, site: Site) -> None:
        with pytest.raises(BundleError, match=r"key .*absent does not exist"):
            signatures.check_can_sign(site.folder / "absent")

    def test_without_ssh_keygen_one_line_says_so(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(BundleError, match="signatures need ssh-keygen"):
            signatures.check_can_sign(site.folder / "ours")
        assert "signatures need ssh-keygen" in site.refused()


class TestVerifying:
    @settings(
        max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(at=st.integers(0, len(CONTENT) - 1), bit=st.integers(0, 7))
    def test_one_changed_bit_anywhere_is_refused(self, site: Site, at: int, bit: int) -> None:
        changed = bytearray(CONTENT)
        changed[at] ^= 1 << bit
        with pytest.raises(BundleError, match="incorrect signature"):
            verify(io.BytesIO(changed), site.file, site.trusted)

    @settings(
        max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.one_of(st.integers(0, len(CONTENT) - 1), st.binary(min_size=1, max_size=600)))
    def test_what_is_cut_off_or_goes_on_is_refused(self, site: Site, change: int | bytes) -> None:
        content = CONTENT + change if isinstance(change, bytes) else CONTENT[:change]
        with pytest.raises(BundleError, match="incorrect signature"):
            verify(io.BytesIO(content), site.file, site.trusted)

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            ('maker@site valid-before="20200101"', "key has expired"),
            ('maker@site valid-after="20990101"', "key is not yet valid"),
            ('maker@site namespaces="git"', "not permitted for use in signature namespace"),
            ('maker@site no-such-option="x"', "unknown key option"),
            ("#", "No principal matched"),
        ],
    )
    def test_a_key_that_does_not_count_now_or_for_this_is_refused(
        self, site: Site, line: str, reason: str
    ) -> None:
        site.trust(site.folder / "ours", line)
        assert reason in site.refused()

    @pytest.mark.parametrize(
        "line",
        ["*@site", "a@site,b@site", f'x namespaces="git,{NAMESPACE}",valid-after="20200101"'],
    )
    def test_other_forms_of_a_line_count(self, site: Site, line: str) -> None:
        site.trust(site.folder / "ours", line)
        assert site.verify().signer == re.split("[, ]", line)[0]

    def test_an_expired_line_does_not_hide_the_one_that_renews_the_key(self, site: Site) -> None:
        public = (site.folder / "ours.pub").read_text()
        site.trust(site.folder / "ours", more=f'maker@site valid-before="20200101" {public}')
        assert site.verify().signer == "maker@site"

    def test_a_strangers_signature_is_refused(self, site: Site) -> None:
        key = site.sign(site.key("theirs"))
        told = f"is signed with {key}, which does not count by {site.trusted}: No principal matched"
        assert told in site.refused()

    def test_a_signature_for_another_purpose_is_refused(self, site: Site) -> None:
        site.sig.unlink()
        ssh_keygen("-Y", "sign", "-n", "git", "-f", site.folder / "ours", site.file)
        assert "namespace does not match" in site.refused()

    def test_a_revoked_key_is_refused_by_list_and_by_krl(self, site: Site) -> None:
        public = site.folder / "ours.pub"
        krl, other = site.folder / "krl", site.folder / "other"
        ssh_keygen("-q", "-k", "-f", krl, public)
        for revoked in (public, krl):
            assert f"its key is revoked, or {revoked} is no list" in site.refused(revoked)
        ssh_keygen("-q", "-k", "-f", other, site.key("theirs").with_suffix(".pub"))
        assert site.verify(other).signer == "maker@site"

    def test_a_file_that_cannot_say_what_is_revoked_lets_nothing_through(self, site: Site) -> None:
        (site.folder / "junk").write_text("no key")
        assert "is no list of revoked keys" in site.refused(site.folder / "junk")
        assert "trust_revoked" in site.refused(site.folder / "absent")

    @pytest.mark.parametrize("which", ["sig", "trusted", "revoked"])
    def test_a_named_pipe_is_refused_and_not_waited_for(self, site: Site, which: str) -> None:
        pipe = getattr(site, which, site.folder / which)
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        reason = site.refused(pipe if which == "revoked" else None)
        assert reason.endswith(f"{pipe} is no regular file")

    @pytest.mark.parametrize("line", ['""', ","])
    def test_a_key_without_a_name_is_refused_in_one_line(self, site: Site, line: str) -> None:
        site.trust(site.folder / "ours", line)
        assert "it stands there without a name" in site.refused()

    def test_a_name_cannot_steer_the_terminal(self, site: Site) -> None:
        site.trust(site.folder / "ours", "maker\x1b[31m@site")
        assert site.verify().signer == "maker?[31m@site"

    def test_a_program_in_the_folder_of_work_is_not_run(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = site.folder / "ssh-keygen"
        program.write_text("#!/bin/sh\ntouch evil\n")
        program.chmod(0o700)
        monkeypatch.chdir(site.folder)
        monkeypatch.setenv("PATH", f":.:{os.environ['PATH']}")
        assert site.verify().signer == "maker@site"
        assert not (site.folder / "evil").exists()

    @pytest.mark.parametrize("content", [b"", b"junk", b"x" * 70_000])
    def test_what_is_no_signature_is_refused(self, site: Site, content: bytes) -> None:
        site.sig.write_bytes(content)
        site.refused()

    def test_a_missing_signature_or_list_of_keys_is_named(self, site: Site) -> None:
        site.sig.unlink()
        assert f"is not signed, and {site.trusted} says whose" in site.refused()
        site.sign(site.folder / "ours")
        site.trusted.unlink()
        assert f"trust {site.trusted} does not exist" in site.refused()

    def test_one_that_stops_reading_and_says_good_is_not_believed(self, site: Site) -> None:
        program = site.folder / "ssh-keygen"
        said = f'Good "{NAMESPACE}" signature for x with ED25519 key SHA256:abc'
        program.write_text(f"#!{shutil.which('sh')}\nexec <&-\necho '{said}'\n")
        program.chmod(0o700)
        with (
            mock.patch.dict(os.environ, {"PATH": str(site.folder)}),
            pytest.raises(BundleError, match="does not count"),
        ):
            verify(io.BytesIO(bytes(8 << 20)), site.file, site.trusted)


def test_every_byte_reaches_the_digest_and_the_progress(site: Site) -> None:
    steps: list[int] = []
    with site.file.open("rb") as opened:
        found = signatures.look_at(opened, site.file, steps.append)
    assert found
    assert (sum(steps), found.signer) == (len(CONTENT), None)
    assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
