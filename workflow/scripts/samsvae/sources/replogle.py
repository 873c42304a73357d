"""Reader of Replogle et al. 2022: genome-wide CRISPRi in K562 cells, two published files.

The authors' file (copy ``original``) is a dense float32 X of 1,989,578 cells x 8,248 genes, with
``obs["gene"]``, ``obs["sgID_AB"]`` (the pair of guides that a cell carries) and
``var["gene_name"]``. Of the scPerturb copy, sparse and of the same cells, this module assumes that
the pair of guides is in ``obs["guide_id"]`` or ``obs["sgID_AB"]``, the gene in ``obs["gene"]`` or
``obs["perturbation"]`` (where ``control`` stands for ``non-targeting``), and the symbols in
``var["gene_name"]`` or the index.

The screen has the cells of the genes in the table of perturbations, a seeded subsample of control
cells, and the genes in the table of response genes. A perturbation is a pair of guides. Its name
contains ``+`` and ``|``, which canonical labels reserve; they become ``plus`` and ``_and_``:
``AAAS_+_53715438.23-P1P2|AAAS_-_53715355.23-P1P2`` becomes
``AAAS_plus_53715438.23-P1P2_and_AAAS_-_53715355.23-P1P2``. ``obs["guide"]`` keeps the name as
published and ``obs["gene"]`` the target.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_table
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, JOIN
from samsvae.sources.counts import PUBLISHED, Selection, check_screen_size, write_selection
from samsvae.sources.genes import read_genes, unique_names
from samsvae.sources.h5ad_file import (
    AnnDataFile,
    columns,
    counts_of,
    first_column,
    open_h5ad,
    read_column,
    read_names,
)

PUBLISHED_SIZE = {"cells": 118_641, "genes": 1_187, "guide pairs": 722}

NON_TARGETING = "non-targeting"
COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "original": {"gene": ("gene",), "guide": ("sgID_AB",)},
    "scperturb": {"gene": ("gene", "perturbation"), "guide": ("guide_id", "sgID_AB")},
}
COVARIATES = {"gem_group": ("gem_group", "batch")}
REFERENCE = Path(__file__).resolve().parents[4] / "data" / "reference"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplogleSource:
    """File of the screen, selected cells and genes, and the expected size.

    Attributes
    ----------
    path
        The file.
    copy
        ``original`` or ``scperturb``.
    seed, n_controls
        Seed and number of the subsampled control cells. They are drawn from sorted names, so that
        both copies have the same.
    perturbations, response_genes
        Tables with a column ``gene``: the target genes and the measured genes to keep.
    expected_cells, expected_genes, expected_guide_pairs
        Sizes of the screen: a number, ``"published"``, or None for any size.
    """

    path: str
    copy: str = "original"
    seed: int = 0
    n_controls: int = 2_000
    perturbations: str = str(REFERENCE / "replogle_perturbations.tsv")
    response_genes: str = str(REFERENCE / "replogle_response_genes.tsv")
    expected_cells: int | str | None = PUBLISHED
    expected_genes: int | str | None = PUBLISHED
    expected_guide_pairs: int | str | None = PUBLISHED

    def __post_init__(self) -> None:
        if self.copy not in COLUMNS:
            raise InputError(f"copy: {self.copy!r} is none of {', '.join(COLUMNS)}.")


def write_replogle_screen(source: ReplogleSource, provenance: str, output: str | Path) -> None:
    """Write the canonical screen of a published file, in bounded memory.

    Cells without counts of the retained genes are left out, with a line in the log.

    Parameters
    ----------
    source
        The file.
    provenance
        Provenance record, JSON.
    output
        The screen.

    Raises
    ------
    InputError
        If the file lacks what is needed, is not of the expected size, or holds no counts.
    """
    with open_h5ad(source.path) as file:
        counts = counts_of(file)
        write_selection(counts, select(file, source), provenance, output)


def select(file: AnnDataFile, source: ReplogleSource) -> Selection:
    """Select cells and genes, and label the cells, without reading counts.

    Parameters
    ----------
    file
        The open file.
    source
        Settings of the source.

    Raises
    ------
    InputError
        If a column is absent or the sizes are not as expected.
    """
    names = COLUMNS[source.copy]
    gene = _categories(file, first_column(file, "obs", names["gene"], "the target gene"))
    guide = _categories(file, first_column(file, "obs", names["guide"], "the pair of guides"))
    control = gene.isin([NON_TARGETING, CONTROL])
    possible = np.flatnonzero(control | gene.isin(_genes_of(source.perturbations)))
    names_of_possible = read_names(file, "obs", possible)
    kept = _subsample_controls(names_of_possible, control[possible], source)
    cells = possible[kept]
    guide = guide[cells].remove_unused_categories()
    design = Design.of_labels(np.array(_labels(list(guide.categories)), dtype=object)[guide.codes])

    table = read_genes(file)
    genes = np.flatnonzero(table["symbol"].isin(_genes_of(source.response_genes)))
    check_screen_size(
        {
            "cells": len(cells),
            "genes": len(genes),
            "guide pairs": len(design.names),
        },
        {
            "cells": source.expected_cells,
            "genes": source.expected_genes,
            "guide pairs": source.expected_guide_pairs,
        },
        PUBLISHED_SIZE,
        source.path,
    )
    covariates = {"gene": gene[cells].remove_unused_categories(), "guide": guide}
    for name, candidates in COVARIATES.items():
        found = next((c for c in candidates if c in columns(file, "obs")), None)
        if found is not None:
            covariates[name] = read_column(file, "obs", found).to_numpy()[cells]
    return Selection(
        cells,
        genes,
        names_of_possible[kept],
        unique_names(table.iloc[genes]),
        design,
        pd.DataFrame(covariates),
    )


def _categories(file: AnnDataFile, name: str) -> pd.Categorical:
    column = read_column(file, "obs", name)
    if column.isna().any():
        raise InputError(
            f"{file.filename}: obs[{name!r}]: {int(column.isna().sum())} cell(s) have no value. "
            "The published file has one for each: fetch it again."
        )
    return pd.Categorical(column)


def _subsample_controls(names: pd.Index, control: np.ndarray, source: ReplogleSource) -> np.ndarray:
    """Select all perturbed cells and a subsample of control cells; return their indices."""
    controls = np.flatnonzero(control)
    if source.n_controls > len(controls):
        raise InputError(
            f"{source.path}: n_controls is {source.n_controls}, but there are {len(controls)} "
            f"{NON_TARGETING} cells. Lower it."
        )
    by_name = controls[np.argsort(names[controls], kind="stable")]
    rng = np.random.default_rng(source.seed)
    drawn = rng.choice(by_name, source.n_controls, replace=False)
    return np.sort(np.concatenate([np.flatnonzero(~control), drawn]))


def _genes_of(path: str) -> list[str]:
    if not Path(path).is_file():
        raise InputError(
            f"{path}: no such file. Set the list of genes of the screen to an existing table with "
            "the column 'gene'."
        )
    return list(read_table(path)["gene"].astype(str))


def _labels(guides: list[str]) -> list[str]:
    """Convert pairs of guides to valid canonical labels, unique but for controls."""
    labels = [
        CONTROL if NON_TARGETING in guide else guide.replace(JOIN, "plus").replace("|", "_and_")
        for guide in guides
    ]
    named = pd.Index(labels)[np.array(labels) != CONTROL]
    if named.has_duplicates:
        raise InputError(
            f"two pairs of guides would both be called {named[named.duplicated()][0]!r}."
        )
    return labels
