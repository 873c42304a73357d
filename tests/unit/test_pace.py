from datetime import timedelta

from samsvae.runtime import progress


def test_speed_and_rest_follow_the_work_since_the_last_line(monkeypatch):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    work = progress.Pace(total=1000, done=200)
    now = 130.0
    assert work.at(300) == (100 / 30, timedelta(seconds=210))
    now = 131.0
    assert work.at(500) == (200.0, timedelta(seconds=2))
    assert work.elapsed == timedelta(seconds=31)
    now = 132.0
    assert work.at(500) == (0.0, progress.LONGEST)
    now = 140.0
    assert work.at(1000)[1] == timedelta(0)
    assert work.is_due()
    now = 149.9
    assert not work.is_due()
    now = 150.0
    assert work.is_due()
