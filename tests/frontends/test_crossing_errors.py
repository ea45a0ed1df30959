from __future__ import annotations

import pytest

from server.errors import ApiError
from server.frontends.crossing_errors import read_error, write_error
from tests.test_errors import EXAMPLES


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: kind.__name__)
def test_every_error_arrives_as_it_was_raised(kind: type[ApiError]) -> None:
    sent = EXAMPLES[kind][0]()
    arrived = read_error(write_error(sent))
    assert type(arrived) is kind
    assert str(arrived) == str(sent)
    assert vars(arrived) == vars(sent)
    assert (arrived.status, arrived.headers, arrived.body()) == (
        (sent.status, sent.headers, sent.body())
    )
