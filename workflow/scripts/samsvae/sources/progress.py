"""Says how far the reading of a file is."""

import logging
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta

from samsvae.sources.counts import Block

SECONDS_BETWEEN_LINES = 10.0

logger = logging.getLogger(__name__)


def with_progress(blocks: Iterable[Block], n_cells: int) -> Iterator[Block]:
    """Pass blocks on, and log a line now and then: how far, how fast, how long still.

    Parameters
    ----------
    blocks
        Positions and counts of cells.
    n_cells
        Cells of all blocks together.

    Yields
    ------
    tuple
        The blocks.
    """
    started = latest = time.monotonic()
    done = 0
    for positions, counts in blocks:
        yield positions, counts
        done += len(positions)
        now = time.monotonic()
        if now - latest > SECONDS_BETWEEN_LINES:
            latest = now
            speed = done / (now - started)
            left = timedelta(seconds=round((n_cells - done) / speed))
            logger.info(
                "cell %d/%d (%d %%)  %.0f cells/s  %s left",
                done, n_cells, round(100 * done / n_cells), speed, left,
            )  # fmt: skip
    logger.info("%d cells in %s", done, timedelta(seconds=round(time.monotonic() - started)))
