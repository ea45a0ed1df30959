"""`scripts/prove/bundles.py`, in small."""

from __future__ import annotations

from scripts.prove.bundles import attack

# What somebody made who knows how a bundle is made: its list says the truth about it.
CONSISTENT = {
    "nothing",
    "other weights, made anew, the old signature",
    "other weights, signed by a stranger",
    "the signature taken away",
    "a named pipe in place of the signature",
    "the signature of another bundle of ours",
    "our signature for git",
    "a key that has expired",
    "a key that is not valid yet",
    "a key that counts for git only",
    "a key that is revoked",
}


def test_where_signatures_are_asked_for_only_what_was_signed_is_installed() -> None:
    attacks = list(attack(positions=5))
    assert {one.name for one in attacks if one.trusting == "installed"} == {"nothing"}
    assert {one.name for one in attacks if one.untrusting == "installed"} == CONSISTENT
    assert len(attacks) == 13 + 5
