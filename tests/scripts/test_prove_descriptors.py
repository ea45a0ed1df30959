"""`scripts/prove/descriptors.py`, in small."""

from __future__ import annotations

import pytest

from scripts.prove.descriptors import ATTACKS, attack
from tests.metrics_page import MetricsPage

pytestmark = pytest.mark.server


def test_idle_connections_give_way_to_those_who_ask() -> None:
    seen = attack(ATTACKS["half a head"], connections=150)
    assert None not in seen.probes
    assert None not in seen.vectors
    page = MetricsPage(seen.page)
    most = page.value("max_connections")
    assert 10 < most < 50  # of 64 files, some are the server's own, and some are kept back
    assert seen.held < most
    assert page.value("open_connections") <= most
    assert page.value("closed_idle_connections_total") >= 150 - most
    assert "answered at a time" in seen.told[0]
    assert "idle ones are closed for new ones. The limit of open files is 64" in seen.told[1]
    assert len(seen.told) == 2


def test_those_who_stall_their_bodies_do_not_keep_probes_out() -> None:
    seen = attack(ATTACKS["a head, and no body"], connections=150)
    assert None not in seen.probes
    page = MetricsPage(seen.page)
    assert page.value("open_connections") <= page.value("max_connections")
