import logging
import re

import pytest

from samsvae.runtime.script import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def __call__(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_lines_come_at_intervals_with_the_speed_since_the_last_one(clock, lines):
    work = Progress("cell", 1000, " cells", done=200)
    assert lines() == []
    for seconds, n in ((9.9, 50), (20.1, 50), (1, 100), (9, 100)):
        clock.now += seconds
        work.update(n)
    clock.now += 9.9
    work.update(500)
    assert lines() == [
        "cell 300/1000 (30 %)   3.33 cells/s  03:30 left",
        "cell 500/1000 (50 %)  20.00 cells/s  00:25 left",
    ]
    assert work.n == 1000
    assert work.elapsed == "00:49"


def test_each_update_is_logged_where_it_is_asked_for(clock, lines):
    work = Progress("step", 4, " steps", every=0)
    for n in range(2):
        clock.now += 1
        work.set_postfix_str(f"loss {n}", refresh=False)
        work.update(2)
    assert lines() == [
        "step 2/4 (50 %)   2.00 steps/s  00:01 left, loss 0",
        "step 4/4 (100 %)   2.00 steps/s  00:00 left, loss 1",
    ]


def test_more_than_there_should_be_is_counted(clock, lines):
    work = Progress("file", 10, "B", every=0)
    for _ in range(3):
        clock.now += 1
        work.update(8)
    assert re.search(r"24/24 \(100 %\)", lines()[-1])


def test_no_setting_of_tqdm_stops_the_count(monkeypatch, lines, capfd):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    work = Progress("cell", 3, " cells", every=0)
    work.update(3)
    work.close()
    assert work.n == 3
    assert len(lines()) == 1
    assert capfd.readouterr() == ("", "")
