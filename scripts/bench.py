"""Measure how fast the server is, beside other servers in the same run.

    python scripts/bench.py --quick               # a minute: does everything work?
    python scripts/bench.py --peer                # beside others, more than an hour; needs `make bench-peers`
    python scripts/bench.py --only indexing --against '--max-batch-tokens 1024'
    python scripts/bench.py --only quality --dtype float32 --dtype int8 --stsb stsb-dev.csv
    python scripts/bench.py --device cuda         # the scenarios for GPUs, three minutes

Needs the extras `[dev,torch]`, as `make test` installs them. docs/explanation/benchmarks.md tells
what is measured and how; the parts are in the folder `benchmark`.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    # This checkout's `scripts` and `server`, wherever the script is started from.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from scripts.benchmark import cli

    cli.main()


if __name__ == "__main__":
    main()
