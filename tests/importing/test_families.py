"""A family is known by its models' names, and by nothing that only contains one."""

from __future__ import annotations

import pytest

from server.importing.families import find_family


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (("nomic-ai/nomic-embed-text-v1.5",), "nomic-ai/nomic-embed-text-v1.5"),
        (("mine", "somebody/BGE-Small-en"), "BAAI/bge-base-en-v1.5"),
        (("e5-large-v2/",), "intfloat/e5-base-v2"),
        (("nomic-embed-text-v1.5-finetuned",), None),
        (("nomic-embed-text-v1x5",), None),
        (("all-MiniLM-L6-v2", ""), None),
    ],
)
def test_a_family_is_found_by_any_of_a_models_names(
    names: tuple[str, ...], source: str | None
) -> None:
    family = find_family(names)
    assert (family.source if family else None) == source
