"""A fact is one line with its source, and a doubt about it one more."""

from __future__ import annotations

from server.importing.told import Told, quoted, tell, yes_or_no


def test_each_fact_is_a_line_and_a_doubt_a_warning_behind_it() -> None:
    lines: list[str] = []
    facts = [
        Told("normalize", yes_or_no(True), "modules.json"),
        Told("pooling", "mean", "1_Pooling/config.json", "the table has cls"),
        Told("prompt query", quoted('a "b":\nc 你'), "--query-prompt"),
    ]
    tell(facts, lines.append)
    assert lines == [
        "normalize: yes (modules.json)",
        "pooling: mean (1_Pooling/config.json)",
        "warning: pooling: the table has cls",
        r'prompt query: "a \"b\":\nc 你" (--query-prompt)',
    ]
