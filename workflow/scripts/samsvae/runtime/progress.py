"""How fast long work goes, and how long it will still take."""

import logging
import time
from datetime import timedelta

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
LONGEST = timedelta(days=999)  # that is said to be left, when work stands still


class Pace:
    """The pace of work of a known size.

    Parameters
    ----------
    total
        How much there is to do, in steps, cells or bytes.
    done
        How much was done before.
    """

    def __init__(self, total: int, done: int = 0) -> None:
        self.total = total
        self.started = self.latest = time.monotonic()
        self.told = self.started, done

    @property
    def elapsed(self) -> timedelta:
        """Time since the work began, to the second."""
        return timedelta(seconds=round(time.monotonic() - self.started))

    def at(self, done: int) -> tuple[float, timedelta]:
        """Tell the speed since the last time, each second, and how long the rest takes with it.

        Not the speed since the start, which a GPU spends on compiling.
        """
        (since, before), now = self.told, time.monotonic()
        self.told = now, done
        speed = (done - before) / max(now - since, 1e-9)
        rest = max(self.total - done, 0)
        if rest > speed * LONGEST.total_seconds():
            return speed, LONGEST
        return speed, timedelta(seconds=round(rest / speed) if rest else 0)

    def is_due(self) -> bool:
        """Whether it is time for another line in the log."""
        now = time.monotonic()
        if now - self.latest < SECONDS_BETWEEN_LINES:
            return False
        self.latest = now
        return True


class CellProgress:
    """Says now and then how far something is with cells, how fast, and how long it will take.

    Parameters
    ----------
    total
        Cells of all.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.pace = Pace(total)

    def advance(self, n_cells: int) -> None:
        """Count more cells; a line is logged every few seconds."""
        self.done += n_cells
        if self.pace.is_due():
            speed, left = self.pace.at(self.done)
            logger.info(
                "cell %d/%d (%d %%)  %.0f cells/s  %s left",
                self.done, self.total, round(100 * self.done / self.total), speed, left,
            )  # fmt: skip
