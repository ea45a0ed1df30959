"""Write WordNet's definitions and usage examples, one text a line, for `models fit-rotation`.

The source is WordNet 3.0 (WordNet 3.0 licence: free to use, copy and change, its notice is kept),
as packed in Debian's wordnet-base 1:3.0-37, file `wordnet-base_1%3a3.0-37_all.deb`, sha256
61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752. The commands are in
`docs/explanation/matryoshka.md`.

Needs the standard library only and knows nothing of models.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DATA_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
MIN_WORDS = 4  # "a tree" says too little to have telling neighbours


def entry_texts(line: str) -> Iterator[str]:
    """Yield the definition, then each quoted example, of one line of a WordNet data file.

    The form is that of wndb(5WN): `fields | definition; "example"; "example"- Author`.
    Lines of the licence, which open each file, have no `|` and yield nothing.
    """
    _, bar, gloss = line.partition(" | ")
    if not bar:
        return
    definition = gloss.split('"', 1)[0]
    for part in (definition, *re.findall(r'"([^"]*)"', gloss)):
        text = part.strip(" \n;:,-")
        if len(text.split()) >= MIN_WORDS:
            yield text


def wordnet_texts(folder: Path) -> list[str]:
    """Return every text of a WordNet `dict` folder once, in file order."""
    texts: dict[str, None] = {}
    for name in DATA_FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            texts.update(dict.fromkeys(entry_texts(line)))
    return list(texts)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write WordNet's texts, one a line.")
    parser.add_argument("folder", type=Path, help="folder that holds data.noun, data.verb, …")
    parser.add_argument("-o", "--output", type=Path, required=True, help="text file to write")
    options = parser.parse_args()
    try:
        texts = wordnet_texts(options.folder)
        options.output.write_text("\n".join(texts) + "\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        print(f"rotation_text: {error}", file=sys.stderr)
        return 2
    print(f"{len(texts):,} texts written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
