"""Which cells train, validate and test; the same for every model and baseline.

The divisions of Bereket & Karaletsos 2023 (their section 4): ``random``,
``unseen_combinations`` and ``data_efficiency``.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

from samsvae.errors import InputError
from samsvae.experiments import Split
from samsvae.files import read_table
from samsvae.labels import CONTROL, components

TRAIN, VAL, TEST, UNUSED = "train", "val", "test", "unused"
TEST_FRACTION = 0.2
VAL_FRACTION = 0.2  # of what is left after the test cells, so 16 % of all
TEST_PAIRS_FRACTION = 0.25
FEWEST_CELLS = 10


def split_cells(perturbation: Sequence[str], split: Split) -> np.ndarray:
    """Divide cells.

    Parameters
    ----------
    perturbation
        Canonical label of each cell.
    split
        The kind of division, its fraction and its seed.

    Returns
    -------
    ndarray of str
        For each cell ``train``, ``val``, ``test`` or ``unused``.

    Raises
    ------
    InputError
        If there are too few cells, or no combinations where the kind needs them.
    """
    labels = np.asarray(perturbation, dtype=object)
    if len(labels) < FEWEST_CELLS:
        raise InputError(
            f"{len(labels)} cells cannot be split; at least {FEWEST_CELLS} are needed."
        )
    rng = np.random.default_rng(split.seed)
    if split.kind == "random":
        return _train_val_test(len(labels), rng)
    if split.fraction is None:
        raise InputError(f"A split of the kind {split.kind!r} needs a fraction.")
    is_pair = np.array([len(components(label)) > 1 for label in labels])
    if not is_pair.any():
        raise InputError(
            f"The split {split.kind!r} needs cells with combinations, and the screen has none. "
            "Use the split 'random', or set the screen's 'delimiter'."
        )
    divide = {"unseen_combinations": _unseen_combinations, "data_efficiency": _data_efficiency}
    parts = np.full(len(labels), UNUSED, dtype=object)
    parts[is_pair] = divide[split.kind](labels[is_pair], split.fraction, rng)
    parts[~is_pair] = _train_val((~is_pair).sum(), rng)
    return parts


def _train_val_test(n_cells: int, rng: np.random.Generator) -> np.ndarray:
    order = rng.permutation(n_cells)
    n_test = round(TEST_FRACTION * n_cells)
    n_val = round(VAL_FRACTION * (n_cells - n_test))
    parts = np.full(n_cells, TRAIN, dtype=object)
    parts[order[:n_test]] = TEST
    parts[order[n_test : n_test + n_val]] = VAL
    return parts


def _train_val(n_cells: int, rng: np.random.Generator) -> np.ndarray:
    parts = np.full(n_cells, TRAIN, dtype=object)
    parts[rng.permutation(n_cells)[: round(VAL_FRACTION * n_cells)]] = VAL
    return parts


def _unseen_combinations(
    pairs: np.ndarray, fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """Hold whole pairs out: the last quarter, in an order drawn by the seed, is for the test."""
    distinct = np.array(sorted(set(pairs)), dtype=object)
    rng.shuffle(distinct)
    n_test = max(1, round(TEST_PAIRS_FRACTION * len(distinct)))
    n_trained = round(fraction * (len(distinct) - n_test))
    trained = np.isin(pairs.astype(str), distinct[:n_trained].astype(str))
    tested = np.isin(pairs.astype(str), distinct[-n_test:].astype(str))
    parts = _train_val_test(len(pairs), rng)
    kept = (tested & (parts == TEST)) | (trained & (parts != TEST))
    return np.where(kept, parts, UNUSED)


def _data_efficiency(pairs: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Use only the first of the pairs' training cells, in an order drawn by the seed."""
    parts = _train_val_test(len(pairs), rng)
    train = rng.permutation(np.flatnonzero(parts == TRAIN))
    parts[train[round(fraction * len(train)) :]] = UNUSED
    return parts


def check_trained(
    perturbation: Sequence[str], parts: np.ndarray, untrained_perturbations: str
) -> list[str]:
    """Find the single perturbations that no training cell received.

    Parameters
    ----------
    perturbation
        Canonical label of each cell.
    parts
        What :func:`split_cells` gave.
    untrained_perturbations
        ``refuse`` or ``keep_prior``, as in the configuration.

    Returns
    -------
    list of str
        Their names, in alphabetical order.

    Raises
    ------
    InputError
        If there are any and they are to be refused, or if no control cell trains.
    """
    labels = np.asarray(perturbation, dtype=object)
    cells: Counter[str] = Counter(part for label in labels for part in components(label))
    trained = {part for label in set(labels[parts == TRAIN]) for part in components(label)}
    if CONTROL not in set(labels[parts == TRAIN]):
        raise InputError(
            f"None of the {int((labels == CONTROL).sum())} control cell(s) is a training cell. "
            "More control cells are needed."
        )
    untrained = sorted(set(cells) - trained)
    if untrained and untrained_perturbations == "refuse":
        some = ", ".join(f"{name} ({cells[name]} cells)" for name in untrained[:5])
        raise InputError(
            f"{len(untrained)} perturbation(s) have no training cell in this split: {some}. "
            "Remove them from the file, or set the split's 'untrained_perturbations' to "
            "'keep_prior': models then know nothing of them but their prior."
        )
    return untrained


def held_out_cells(labels: pd.Series, parts: pd.Series) -> np.ndarray:
    """Choose for each perturbation the cells that no model has seen.

    Parameters
    ----------
    labels, parts
        Perturbation and split of each cell.

    Returns
    -------
    ndarray of bool
        Test and unused cells; for a perturbation that has none, its validation cells, which
        chose the best step of training but were not trained on.
    """
    unseen = parts.isin([TEST, UNUSED])
    has_unseen = unseen.groupby(labels, observed=True).transform("any")
    return (unseen | (~has_unseen & (parts == VAL))).to_numpy(dtype=bool)


def split_table(screen: anndata.AnnData, parts: Sequence[str] | pd.Series) -> pd.DataFrame:
    """Lay out a split as the table kept in split.tsv.

    Returns
    -------
    DataFrame
        Columns cell, perturbation, library_size (counts), split.
    """
    return pd.DataFrame(
        {
            "cell": screen.obs_names,
            "perturbation": screen.obs["perturbation"].astype(str).to_numpy(),
            "library_size": screen.obs["library_size"].to_numpy(),
            "split": np.asarray(parts, dtype=object),
        }
    )


def read_split(path: str | Path, screen: anndata.AnnData) -> pd.Series:
    """Read a split of a screen.

    Returns
    -------
    Series
        Split by cell, in the screen's order.

    Raises
    ------
    InputError
        If the file is of another screen.
    """
    table = read_table(path).astype({"cell": str}).set_index("cell")["split"]
    if not table.index.equals(pd.Index(screen.obs_names)):
        raise InputError(f"{path}: its cells are not those of the screen. Remove the file.")
    return table
