"""What a source keeps of its file, and how that becomes a canonical screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.screen import Guides
from samsvae.screen_file import write_screen_in_blocks
from samsvae.sources.counts import CountMatrix
from samsvae.sources.progress import with_progress
from samsvae.sources.read_ahead import read_ahead


@dataclass(frozen=True)
class Selection:
    """What is kept of a file.

    Attributes
    ----------
    cells, genes
        Positions in the file; those of cells ascend.
    cell_names, gene_names
        Their unique names.
    labels
        Canonical label of each of these cells.
    covariates
        More columns of ``obs`` of these cells; None if there are none.
    library_sizes
        Library size of each of these cells; None if it is the sum of the counts kept.
    guides
        Guides of these cells; None if the file does not tell them.
    declared
        Columns of the file from which columns of ``obs`` come, see :data:`samsvae.screen.DECLARED`.
    lost
        Cells that are left out before any count is read: ``reason`` and ``cells``.
    """

    cells: np.ndarray
    genes: np.ndarray
    cell_names: pd.Index
    gene_names: Sequence[str]
    labels: Sequence[str] | pd.Categorical
    covariates: pd.DataFrame | None = None
    library_sizes: np.ndarray | None = None
    guides: Guides | None = None
    declared: Mapping[str, str] | None = None
    lost: pd.DataFrame | None = None


def write_selection(
    counts: CountMatrix,
    kept: Selection,
    provenance: str,
    output: str | Path,
    *,
    drop_empty: bool = True,
) -> None:
    """Write the canonical screen of what is kept, whole or not at all, in bounded memory.

    Parameters
    ----------
    counts
        Counts of the open file.
    kept
        What to write.
    provenance
        What made the screen, as JSON.
    output
        The screen.
    drop_empty
        Whether cells without a count in the genes kept are left out, with a line in the log, or
        refused.

    Raises
    ------
    InputError
        If counts, names or labels break the contract.
    """
    write_screen_in_blocks(
        with_progress(read_ahead(counts.blocks(kept.cells, kept.genes)), len(kept.cells)),
        kept.labels,
        kept.cell_names,
        kept.gene_names,
        provenance,
        output,
        where=counts.where,
        genes=kept.genes,
        covariates=kept.covariates,
        known_sizes=kept.library_sizes,
        guides=kept.guides,
        declared=kept.declared,
        lost=kept.lost,
        drop_empty=drop_empty,
    )
