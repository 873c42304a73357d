"""Reads the next block of a file while the last one is worked on."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from samsvae.sources.blocks import Block


def read_ahead(blocks: Iterable[Block]) -> Iterator[Block]:
    """Take blocks in a thread of their own, one ahead.

    h5py releases the interpreter's lock while it reads and decompresses.

    Parameters
    ----------
    blocks
        Positions and counts of cells, read as they are asked for.

    Yields
    ------
    tuple
        The blocks, in order. What their reading raises is raised here.
    """
    source = iter(blocks)
    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = reader.submit(next, source, None)
        while (block := waiting.result()) is not None:
            waiting = reader.submit(next, source, None)
            yield block
