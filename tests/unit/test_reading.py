import logging

import numpy as np
import pytest
from scipy import sparse

from samsvae.sources.blocks import read_ahead, with_progress


def blocks(n, asked):
    for i in range(n):
        asked.append(i)
        yield np.array([i]), sparse.csr_matrix([[i]])


def test_blocks_come_in_order_and_one_ahead_at_most():
    asked = []
    for i, (positions, _) in enumerate(read_ahead(blocks(20, asked))):
        assert list(positions) == [i]
        assert len(asked) <= i + 2
    assert asked == list(range(20))


def test_what_reading_raises_is_raised_after_the_blocks_before_it():
    def broken():
        yield from blocks(3, [])
        raise ValueError("broken")

    seen = []
    with pytest.raises(ValueError, match="broken"):
        seen.extend(read_ahead(broken()))
    assert list(read_ahead(blocks(0, []))) == []


def test_reading_stops_with_its_reader():
    asked = []
    ahead = read_ahead(blocks(100, asked))
    next(ahead)
    ahead.close()
    assert len(asked) <= 3


def test_progress_says_how_far_it_is(caplog, monkeypatch):
    monkeypatch.setattr("samsvae.runtime.script.SECONDS_BETWEEN_LINES", -1)
    caplog.set_level(logging.INFO)
    assert len(list(with_progress(blocks(4, []), 4))) == 4
    assert "cell 2/4 (50 %)" in caplog.text
    assert "4 cells in " in caplog.text
