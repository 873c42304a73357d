"""Says how far the reading of a file is."""

import logging
from collections.abc import Iterable, Iterator

from samsvae.pace import Pace
from samsvae.sources.blocks import Block

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
    pace, done = Pace(n_cells), 0
    for positions, counts in blocks:
        yield positions, counts
        done += len(positions)
        if pace.is_due():
            speed, left = pace.at(done)
            logger.info(
                "cell %d/%d (%d %%)  %.0f cells/s  %s left",
                done, n_cells, round(100 * done / n_cells), speed, left,
            )  # fmt: skip
    logger.info("%d cells in %s", done, pace.elapsed)
