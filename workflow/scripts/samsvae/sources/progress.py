"""Says how far the reading of a file is."""

import logging
from collections.abc import Iterable, Iterator

from samsvae.pace import CellProgress
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
    progress = CellProgress(n_cells)
    for positions, counts in blocks:
        yield positions, counts
        progress.advance(len(positions))
    logger.info("%d cells in %s", progress.done, progress.pace.elapsed)
