"""The prompts of an imported model: the folder's under their own names, the published, the person's.

A folder says them in sentence-transformers' file and nowhere else. What config.json may hold is none:
`task_specific_params` are what a T5 writes its answers by, and `task_instructions`
(jinaai/jina-embeddings-v3) repeat the file's. Any thread may call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.catalog.prompts import (
    DOCUMENT,
    PURPOSES,
    QUERY,
    fault_of_names,
    names_for,
    purpose_of,
)
from server.errors import ImportRefused, SettingError
from server.importing.families import Family
from server.importing.json_files import read_json_if_there
from server.importing.told import Told, quoted, tell

PROMPTS_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts that are put before inputs, by name, and the name of the one that is by default."""

    by_name: Mapping[str, str]
    default: str | None = None

    def text_for(self, purpose: str) -> str:
        """The text for this purpose; empty if there is none."""
        names = names_for(purpose, self.by_name)
        return self.by_name[names[0]] if names else ""

    @property
    def of_card(self) -> list[str]:
        """The texts for queries, for documents and for texts without a purpose."""
        default = self.by_name[self.default] if self.default is not None else ""
        return [self.text_for(QUERY), self.text_for(DOCUMENT), default]


def read_prompts(path: Path) -> Prompts:
    """All prompts of a folder, as its sentence-transformers file names them.

    Empty ones for queries and documents are left out: without a prompt these are the bare texts.

    Raises:
        ImportRefused: the file is broken, or what it names are no prompts.
    """
    file = path / PROMPTS_FILE
    config = read_json_if_there(file)
    named = config.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise ImportRefused(f"{file}: prompts must be texts by name")
    if fault := fault_of_names(named):
        raise ImportRefused(f"{file}: prompts: {fault}")
    default = config.get("default_prompt_name")
    if not isinstance(default, str | None):
        raise ImportRefused(f"{file}: default_prompt_name must be a text")
    if default is not None and default not in named:
        raise ImportRefused(f"{file}: default_prompt_name {default!r} is not among the prompts")
    prompts = _without_empty(named)
    return Prompts(prompts, _as_fingerprinted(prompts, default))


def wished_prompts(named: Iterable[str], query: str | None, document: str | None) -> dict[str, str]:
    """What the flags say, by name.

    Args:
        named: of --prompt, each NAME=TEXT.
        query, document: of --query-prompt and --document-prompt.

    Raises:
        SettingError: one is not of that form, or no text.
    """
    wished = {QUERY: query, DOCUMENT: document}
    prompts = {name: text for name, text in wished.items() if text is not None}
    for one in named:
        name, sign, text = one.partition("=")
        if not sign:
            raise SettingError(f"--prompt: {one!r} is not NAME=TEXT")
        if name in prompts:
            raise SettingError(f"--prompt: {name!r} is said twice")
        prompts[name] = text
    for name, text in prompts.items():
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise SettingError(f"--prompt: the text of {name!r} is not UTF-8")
    if fault := fault_of_names(prompts):
        raise SettingError(f"--prompt: {fault}")
    return prompts


def choose_prompts(
    own: Prompts,
    family: Family | None,
    wished: Mapping[str, str],
    report: Callable[[str], None],
) -> Prompts:
    """The folder's prompts, those published for the family if it has none for queries and documents.

    What a person says comes before both, and for `query` and `document` takes the place of all that
    go by another name of these. Each is told.

    Raises:
        ImportRefused: there are too many.
    """
    chosen = dict(own.by_name)
    sources = dict.fromkeys(chosen, PROMPTS_FILE)
    if family is not None and not (own.text_for(QUERY) or own.text_for(DOCUMENT)):
        chosen |= family.prompts
        sources |= dict.fromkeys(family.prompts, family.cited)
    for purpose in (QUERY, DOCUMENT):
        if purpose in wished:
            for name in names_for(purpose, chosen):
                del chosen[name]
            sources[purpose] = f"--{purpose}-prompt"
    sources |= {name: "--prompt" for name in wished if name not in (QUERY, DOCUMENT)}
    prompts = _without_empty(chosen | dict(wished))
    if fault := fault_of_names(prompts):
        raise ImportRefused(fault)
    found = Prompts(prompts, _default_among(prompts, own.default))
    tell(_told(found, sources, own.default), report)
    return found


def _without_empty(prompts: Mapping[str, str]) -> dict[str, str]:
    """Without empty ones under the two names that mean the bare text when they are not there."""
    return {name: text for name, text in prompts.items() if text or name not in (QUERY, DOCUMENT)}


def _as_fingerprinted(prompts: Mapping[str, str], default: str | None) -> str | None:
    """The default prompt; by the name of that for queries or documents if it has the same text.

    So it was named when there were no others, and a fingerprint holds the name.
    """
    if default is None or not prompts.get(default):
        return None
    found = [names_for(purpose, prompts)[:1] for purpose in (QUERY, DOCUMENT)]
    alike = (name for names in found for name in names if prompts[name] == prompts[default])
    return next(alike, default)


def _default_among(prompts: Mapping[str, str], default: str | None) -> str | None:
    """The folder's default prompt, or that which has taken its place."""
    if default is None or default in prompts:
        return default
    purpose = purpose_of(default)
    names = names_for(purpose, prompts) if purpose else []
    return names[0] if names else None


def _told(prompts: Prompts, sources: Mapping[str, str], own_default: str | None) -> Iterator[Told]:
    """What each purpose gets and why, a line each."""
    texts = prompts.by_name
    if not sources:
        yield Told("prompts", "none", f"{PROMPTS_FILE} names none")
        yield Told("default prompt", "none", f"{PROMPTS_FILE} names none")
        return
    meant = {purpose: names for purpose in PURPOSES if (names := names_for(purpose, texts))}
    for purpose in (QUERY, DOCUMENT):
        if purpose not in meant:
            source = sources.get(purpose, "no prompt is named for it")
            yield Told(f"prompt {purpose}", "none, the bare text", source)
            continue
        name = meant[purpose][0]
        named = "" if name == purpose else f", {name}"
        doubt = _doubt(purpose, meant[purpose], texts)
        yield Told(f"prompt {purpose}", quoted(texts[name]), f"{sources[name]}{named}", doubt)
    central = {meant[purpose][0] for purpose in (QUERY, DOCUMENT) if purpose in meant}
    others = [name for name in texts if name not in central]
    if others:
        doubts = (
            _doubt(purpose, names, texts)
            for purpose, names in meant.items()
            if purpose not in (QUERY, DOCUMENT)
        )
        source = ", ".join(dict.fromkeys(sources[name] for name in others))
        yield Told("other prompts", ", ".join(others), source, "; ".join(filter(None, doubts)))
    silent = "" if own_default else " names none"
    yield Told("default prompt", prompts.default or "none", f"{PROMPTS_FILE}{silent}")


def _doubt(purpose: str, names: list[str], texts: Mapping[str, str]) -> str:
    """What else the purpose could mean."""
    others = [name for name in names if texts[name] not in ("", texts[names[0]])]
    if not others:
        return ""
    listed = ", ".join(others)
    return (
        f"input_type {purpose} takes the prompt {names[0]}; only under their own names, since their "
        f"texts differ: {listed}"
    )
