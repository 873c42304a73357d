"""What a source keeps of its file, and how that becomes a canonical screen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

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
    """

    cells: np.ndarray
    genes: np.ndarray
    cell_names: pd.Index
    gene_names: Sequence[str]
    labels: Sequence[str] | pd.Categorical
    covariates: pd.DataFrame | None = None


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
        drop_empty=drop_empty,
    )
