"""Validation of a canonical screen: names, labels, counts."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.runtime.errors import InputError
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, JOIN, MARK, doses

if TYPE_CHECKING:
    import anndata

MOST_CHARACTERS = 200
BATCH_SIZE = 10_000  # names of cells; there may be millions

# Unicode categories: control, surrogate, line and paragraph separators, format
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp", "Cf")


def check_text(texts: Iterable[str], what: str, where: str) -> None:
    """Refuse text that is empty, too long or has control characters.

    Any other character is allowed, since tables and figures escape special characters.

    Raises
    ------
    InputError
        Quoting the first such text.
    """
    waiting = iter(texts)
    while some := list(itertools.islice(waiting, BATCH_SIZE)):
        if _is_plain(some):
            continue
        for text in some:
            fault = text_fault(text)
            if fault:
                raise InputError(
                    f"{where}: the {what} {text[:MOST_CHARACTERS]!r} {fault}. Rename it in the "
                    "file."
                )


def _is_plain(texts: Sequence[str]) -> bool:
    """Whether all texts are printable ASCII without blanks and not too long."""
    joined = "".join(texts)
    sizes = [len(text) for text in texts]
    return (
        joined.isascii()
        and joined.isprintable()
        and " " not in joined
        and min(sizes) > 0
        and max(sizes) <= MOST_CHARACTERS
    )


def text_fault(text: str) -> str | None:
    """Describe what is wrong with a name; None if it is valid."""
    if not text.strip():
        return "is empty"
    if len(text) > MOST_CHARACTERS:
        return f"is longer than {MOST_CHARACTERS} characters"
    if text.isascii() and text.isprintable():
        return None
    if any(unicodedata.category(character) in UNPRINTABLE for character in text):
        return "has a control character"
    return None


MOST_COUNTS = np.iinfo(np.int32).max


def check_names(names: Iterable[str], what: str, where: str) -> None:
    """Refuse names that are duplicate, empty, too long or of several lines.

    Raises
    ------
    InputError
        Naming the first few.
    """
    index = pd.Index(names)
    check_text(index, f"{what} name", where)
    twice = index[index.duplicated()].unique()
    if len(twice):
        raise InputError(
            f"{where}: {len(twice)} {what} name(s) occur more than once, for instance "
            f"{', '.join(map(str, twice[:5]))}. Make them unique in the file "
            f"(anndata: {'obs' if what == 'cell' else 'var'}_names_make_unique)."
        )


def check_counts(
    values: sparse.csr_matrix,
    where: str,
    cells: np.ndarray | None = None,
    genes: np.ndarray | None = None,
) -> sparse.csr_matrix:
    """Refuse values other than non-negative integers within int32.

    Parameters
    ----------
    values
        Cells x genes.
    where
        File and layer, for messages.
    cells, genes
        Indices of the rows and columns in the file, for messages; None if they are the file's.

    Returns
    -------
    scipy.sparse.csr_matrix
        The same, int32.

    Raises
    ------
    InputError
        Naming the first offending cell, gene and value.
    """
    with np.errstate(invalid="ignore"):
        counts = values.data.astype(np.int32)
    if (counts != values.data).any() or (counts < 0).any():
        _refuse_values(values, where, cells, genes)
    return sparse.csr_matrix((counts, values.indices, values.indptr), shape=values.shape)


def _refuse_values(
    matrix: sparse.csr_matrix, where: str, cells: np.ndarray | None, genes: np.ndarray | None
) -> None:
    values = matrix.data.astype(np.float64)  # float32 rounds the largest count to 2**31
    faults = {
        "is not a finite number": ~np.isfinite(values),
        "is negative": values < 0,
        "is not an integer": values != np.floor(values),
        f"is above {MOST_COUNTS}": values > MOST_COUNTS,
    }
    fault, wrong = next((fault, wrong) for fault, wrong in faults.items() if wrong.any())
    at = int(np.argmax(wrong))
    row = int(np.searchsorted(matrix.indptr, at, side="right")) - 1
    column = int(matrix.indices[at])
    raise InputError(
        f"{where}: the value {values[at]:g} of cell {row if cells is None else cells[row]}, gene "
        f"{column if genes is None else genes[column]} (counting from 0) {fault}; "
        f"{int(wrong.sum())} such value(s) among {len(values)}. Raw UMI counts are needed: set "
        "'counts_layer' to the layer that has them."
    )


def refuse_empty_cells(empty: Sequence[int] | np.ndarray, where: str) -> None:
    """Refuse cells without counts.

    Parameters
    ----------
    empty
        Positions of such cells in the file.
    where
        File and layer, for messages.

    Raises
    ------
    InputError
        If there are any, naming the first.
    """
    if len(empty):
        raise InputError(
            f"{where}: {len(empty)} cell(s) have no count at all, the first at position "
            f"{empty[0]} (counting from 0). Remove empty cells from the file."
        )


def check_library_sizes(library_size: np.ndarray, total: np.ndarray, where: str) -> None:
    """Refuse library sizes below the sum of the retained counts.

    Parameters
    ----------
    library_size
        Library size of each cell, from a column.
    total
        Sum of its counts of the retained genes.
    where
        File and layer, for messages.

    Raises
    ------
    InputError
        Naming both values of the first such cell.
    """
    below = library_size < total
    if below.any():
        at = int(np.argmax(below))
        raise InputError(
            f"{where}: the library size {library_size[at]:,.0f} of a cell is below its "
            f"{total[at]:,.0f} counts in the genes kept (so in {int(below.sum()):,} cells). Set "
            "'library_size_column' to a column with the number of all counts, or leave it out."
        )


def check_design(design: Design, where: str, needs_control: bool = True) -> None:
    """Refuse a screen without control cells, or without perturbed cells.

    Parameters
    ----------
    design
        Design matrix of the cells.
    where
        Source of the data, for messages.
    needs_control
        Whether effects are relative to control cells.

    Raises
    ------
    InputError
        Naming what is missing, or the perturbation whose name is not valid in a label.
    """
    check_text(design.names, "label", where)
    for name in design.names:
        if doses(name) != {name: 1.0}:
            raise InputError(
                f"{where}: the perturbation {name!r} would be read as another in a label, where "
                f"{CONTROL!r}, {JOIN!r} and {MARK!r} before a number have a meaning. Rename it in "
                "the file."
            )
    is_control = design.n_perturbations == 0
    if needs_control and not is_control.any():
        raise InputError(f"{where}: there is no control cell.")
    if is_control.all():
        raise InputError(f"{where}: every cell is a control cell; there is nothing to model.")


def check_agreement(screen: anndata.AnnData, where: str) -> None:
    """Refuse a screen with labels that differ from the rows of its design matrix.

    Raises
    ------
    InputError
        As of :func:`check_labels`.
    """
    check_labels(
        Design.of_screen(screen).labels(), screen.obs["perturbation"], screen.obs_names, where
    )


def check_labels(
    written: pd.Categorical,
    labels: pd.Series | pd.Categorical,
    names: pd.Index | pd.Series,
    where: str,
    first: int = 0,
) -> None:
    """Refuse labels of cells that differ from those of their rows of the design matrix.

    Parameters
    ----------
    written
        Labels of the rows of the design matrix.
    labels, names
        Labels and names of the cells.
    where
        The screen, for messages.
    first
        Row of the first of these cells.

    Raises
    ------
    InputError
        Naming the first such cell, its label and that of its row.
    """
    given = pd.Categorical(labels)
    index = np.append(written.categories.get_indexer(given.categories), -1)
    differs = index[given.codes] != written.codes
    if differs.any():
        at = int(np.argmax(differs))
        raise InputError(
            f"{where}: obs['perturbation'] of the cell {str(np.asarray(names)[at])!r} (row "
            f"{first + at:,}) is {given[at]!r}, but its row of obsm['dosage'] is {written[at]!r} "
            f"(in {int(differs.sum()):,} cells the two differ). Write the screen anew from its "
            "source."
        )
