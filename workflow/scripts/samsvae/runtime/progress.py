"""Progress of long work in the log: speed and remaining time."""

import io
import logging
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}{n_fmt}/{total_fmt} ({percentage:.0f} %)  {rate_noinv_fmt}  {remaining} left{postfix}"


class Progress(tqdm):
    """Progress bar of tqdm that writes lines to the log.

    The log is in the terminal and in the file of the job. It draws no bar: jobs that run side by
    side share a terminal, where one bar would overwrite another.

    Parameters
    ----------
    what
        Description at the start of each line, such as ``cell``.
    total
        Total amount of work.
    unit
        Unit of the speed, such as ``' cells'``.
    done
        Amount of work that was done before.
    every
        Smallest number of seconds between lines; by default :data:`SECONDS_BETWEEN_LINES`. With 0,
        each update logs a line.
    **options
        Options of :class:`tqdm.tqdm`.
    """

    monitor_interval = 0  # no thread beside the work
    total: float

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        done: int = 0,
        every: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            desc=f"{what} ",
            total=total,
            unit=unit,
            initial=done,
            bar_format=LINE,
            mininterval=SECONDS_BETWEEN_LINES if every is None else every,
            miniters=1,
            smoothing=1,  # the speed since the last line: a GPU spends the first steps on compiling
            delay=1e-9,  # no line before anything is done
            file=io.StringIO(),
            leave=False,
            disable=False,
            **options,
        )

    def update(self, n: float | None = 1) -> bool | None:
        """Add work, and log a line when one is due."""
        self.total = max(self.total, self.n + (n or 0))  # a file may be longer than published
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log a line; the messages by which tqdm clears a bar are ignored."""
        if msg is None:
            logger.info("%s", str(self))

    @property
    def elapsed(self) -> str:
        """Time since the work began, as ``[hours:]minutes:seconds``."""
        return str(self.format_interval(self.format_dict["elapsed"]))
