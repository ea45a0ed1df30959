"""Tests run commands in their own process, and numpy reads this once: as the commands set it."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
