"""Texts by words against one pass over each, with all-MiniLM-L6-v2's tokenizer: ids and CPU time."""

import random
import statistics
import time
from pathlib import Path

from scripts.benchmark.texts import make_requests
from scripts.prove.tables import options, print_table
from tests.inference.both_ways import BothWays, read_tokenizer
from tests.inference.odd_texts import OddTexts, around_each_character, new_words

REQUESTS = 80  # the second half is timed


def cpu_ms(both: BothWays, requests: list[list[str]]) -> tuple[str, str]:
    """Median milliseconds of CPU time a request, by one pass and by words, in turn."""
    taken: tuple[list[float], list[float]] = ([], [])
    for turn, texts in enumerate(requests):
        for way in (0, 1) if turn % 2 else (1, 0):
            start = time.thread_time()
            (both.one_pass, both.by_words)[way](texts)
            taken[way].append(1000 * (time.thread_time() - start))
    one_pass, words = (statistics.median(ms[REQUESTS // 2 :]) for ms in taken)
    return f"{one_pass:.3f}", f"{words:.3f}"


def main() -> None:
    """Compare, and time."""
    both = BothWays(read_tokenizer(Path("models/all-MiniLM-L6-v2/tokenizer.json")))
    odd = OddTexts(0, ["[CLS]", "[MASK]"])
    texts = [odd.draw() for _ in range(options(__doc__, texts=100_000).texts)]
    texts += around_each_character()
    print(f"{len(texts)} texts, of which {len(both.differing(texts))} have other ids\n")
    lines = [line for page in sorted(Path("docs").rglob("*.md")) for line in page.open()]
    random.Random(0).shuffle(lines)
    requests = {
        "64 mixed texts of the benchmark": make_requests("mixed", "words", REQUESTS, texts=64),
        "a query of the benchmark": make_requests("query", "words", REQUESTS, texts=1),
        "lines of this documentation": [lines[start::REQUESTS] for start in range(REQUESTS)],
        "64 texts of 60 new words": [new_words(seed, 64, 60) for seed in range(REQUESTS)],
    }
    rows = ((name, *cpu_ms(both, texts)) for name, texts in requests.items())
    print_table(["request", "one pass: CPU ms", "by words: CPU ms"], rows)


if __name__ == "__main__":
    main()
