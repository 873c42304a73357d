"""Selection of cells and genes of a source file, and its conversion to a canonical screen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design, Guides
from samsvae.screen.writing import write_screen_in_blocks
from samsvae.sources.blocks import read_ahead, with_progress
from samsvae.sources.counts import CountMatrix


@dataclass(frozen=True)
class Selection:
    """Selected cells and genes of a file.

    Attributes
    ----------
    cells, genes
        Indices in the file; those of cells are ascending.
    cell_names, gene_names
        Their unique names.
    design
        Design matrix of these cells.
    covariates
        Further columns of ``obs`` of these cells; None if there are none.
    library_sizes
        Library size of each of these cells; None if it is the sum of the retained counts.
    guides
        Guides of these cells; None if unknown.
    declared
        Source columns of columns of ``obs``, see :data:`samsvae.screen.canonical.DECLARED`.
    lost
        Numbers of cells that are left out before counts are read: ``reason`` and ``cells``.
    """

    cells: np.ndarray
    genes: np.ndarray
    cell_names: pd.Index
    gene_names: Sequence[str]
    design: Design
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
    """Write the canonical screen of a selection atomically, in bounded memory.

    Parameters
    ----------
    counts
        Counts of the open file.
    kept
        The selection.
    provenance
        Provenance record, JSON.
    output
        The screen.
    drop_empty
        Whether cells without counts of the retained genes are left out, with a line in the log,
        or refused.

    Raises
    ------
    InputError
        If counts, names or labels are not valid.
    """
    write_screen_in_blocks(
        with_progress(read_ahead(counts.blocks(kept.cells, kept.genes)), len(kept.cells)),
        kept.design,
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


PUBLISHED = "published"


def check_screen_size(
    found: Mapping[str, int],
    expected: Mapping[str, int | str | None],
    published: Mapping[str, int],
    where: str,
) -> None:
    """Refuse a file whose screen is not of the expected size.

    Parameters
    ----------
    found
        Numbers by name.
    expected
        Expected number by name, ``"published"``, or None for any number.
    published
        Published number by name.
    where
        The file, for messages.

    Raises
    ------
    InputError
        Naming all differences.
    """
    wanted = {name: published[name] if n == PUBLISHED else n for name, n in expected.items()}
    differences = [
        f"{found[name]:,} {name} instead of {n:,}"
        for name, n in wanted.items()
        if n is not None and found[name] != n
    ]
    if differences:
        keys = ", ".join(f"expected_{name.replace(' ', '_')}" for name in expected)
        raise InputError(
            f"{where}: the screen has {'; '.join(differences)}. Is the file a part of the "
            f"published one, or another version? To use it as it is, set {keys} to its numbers, "
            "or to null."
        )
