"""Guides: target genes, and guide calling from UMI counts.

Most guides with counts in a cell are ambient: a few molecules of every common guide are in most
droplets. A guide is called in cells with at least a threshold of its UMIs. The threshold is given,
or it is the smallest count that a mixture of two components, background and carriers, assigns to
the carriers with a probability above 1/2:

- ``poisson_gaussian``: a Poisson and a Gaussian component on log2 of the counts above 0
  (Replogle et al. 2020, Nature Biotechnology 38:954);
- ``poisson``: two Poisson components on the counts of all cells (Barry et al. 2024, Genome Biology
  25:124, without their covariates).
"""

import csv
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse, special

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_lines
from samsvae.screen.labels import CONTROL, SAFE_LIKE, LabelSet
from samsvae.sources.h5ad_source import H5adSource

TARGETING, NON_TARGETING, SAFE_TARGETING = "targeting", "non-targeting", "safe-targeting"

# common names of these columns in tables of guides, in order of preference
GUIDE_COLUMNS = (
    "guide", "guide_id", "sgrna", "sgrna_id", "grna", "grna_id", "guide_name", "sgid", "id", "name",
)  # fmt: skip
GENE_COLUMNS = (
    "gene", "target_gene_name", "target_gene", "gene_symbol", "gene_name", "intended_target_name",
    "grna_target", "target", "target_name", "target_gene_id",
)  # fmt: skip

TargetOf = Callable[[str], str | None]


def target_finder(
    source: H5adSource, named: Mapping[str, str] | None = None
) -> tuple[TargetOf | None, bool]:
    """Build the function from guides of a source to their target genes.

    Parameters
    ----------
    source
        Its `guide_table`, a text file with a guide and its gene on each line; or its
        `guide_pattern`, a regular expression whose one group is the gene.
    named
        Target gene by guide, if the file has it.

    Returns
    -------
    target_of : callable or None
        Maps a guide to its target gene, or to None without one; None if labels are genes.
    only_controls : bool
        Whether the table has control guides alone, so that other labels are genes.

    Raises
    ------
    InputError
        If table or pattern cannot be used.
    """
    if source.guide_table is not None:
        genes = read_guide_table(source.guide_table)
        if all(gene in source.controls for gene in genes.values()):
            return lambda guide: genes.get(guide, guide), True
        return genes.get, False
    if source.guide_pattern is not None:
        return _pattern_finder(source.guide_pattern), False
    if named is not None:
        return named.get, False
    return None, False


def _pattern_finder(pattern: str) -> TargetOf:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"'guide_pattern': {pattern!r} is not a regular expression: {error}."
        ) from error
    if expression.groups != 1:
        raise InputError(
            f"'guide_pattern': {pattern!r} has {expression.groups} groups, but needs one alone, "
            r"the gene, as in '^(.+)_g\d+$'."
        )

    def search(guide: str) -> str | None:
        found = expression.search(guide)
        return found[1] if found else None

    return search


def refuse_unknown_guides(
    guides: Iterable[str], target_of: TargetOf | None, source: H5adSource, where: str
) -> None:
    """Refuse guides without a target gene in the table or by the pattern.

    Labels of control cells and excluded labels need none.

    Raises
    ------
    InputError
        Naming the first few, and the key to change.
    """
    if target_of is None:
        return
    unknown = sorted(
        guide
        for guide in set(guides)
        if not target_of(guide) and guide not in source.controls and guide not in source.excluded
    )
    if unknown:
        key = next(
            (key for key in ("guide_table", "guide_pattern") if getattr(source, key)), "gene_column"
        )
        remedy = {
            "guide_table": "Add a line for each, or leave their cells out by 'exclude'.",
            "guide_pattern": "Widen the pattern, or leave their cells out by 'exclude'.",
            "gene_column": "Name their genes in the file, or set 'guide_table'.",
        }
        raise InputError(
            f"{where}: {len(unknown)} guide(s) have no gene by {key!r}"
            + (f" ({getattr(source, key)!r})" if key != "gene_column" else "")
            + f", for instance {', '.join(unknown[:5])}. {remedy[key]}"
        )


def read_guide_table(path: str) -> dict[str, str]:
    """Read a table of guides and their genes.

    Parameters
    ----------
    path
        A text file with a guide and its gene on each line, separated by a tab, a comma or a
        semicolon. A file of more columns has a first line that names them, such as Cell Ranger's
        feature reference (``id``, ``target_gene_name``) or IGVF's table of guides (``guide_id``,
        ``intended_target_name``).

    Returns
    -------
    dict of str
        Gene by guide.

    Raises
    ------
    InputError
        If the file is missing or not such a table, or gives a guide two genes.
    """
    lines = read_lines(path, "'guide_table'")
    first = next((line for line in lines if line.strip()), "")
    separator = next((sign for sign in "\t,;" if sign in first), "\t")
    places, named = _columns(_fields(first, separator), path)
    genes: dict[str, str] = {}
    start = lines.index(first) + 1 if named else 0
    for number, line in enumerate(lines[start:], start=start + 1):
        if not line.strip():
            continue
        fields = _fields(line, separator)
        guide, gene = (fields[place] if place < len(fields) else "" for place in places)
        if named and guide and not gene:
            continue  # a non-targeting guide
        if not (guide and gene) or (not named and len(fields) != 2):
            raise InputError(
                f"{path}: line {number} is not a guide and its gene, separated by a tab: {line!r}."
            )
        if genes.setdefault(guide, gene) != gene:
            raise InputError(
                f"{path}: line {number} gives the guide {guide!r} the gene {gene!r}, an earlier "
                f"line {genes[guide]!r}. Keep one."
            )
    if not genes:
        raise InputError(f"{path}: there is no guide in this table.")
    return genes


def _fields(line: str, separator: str) -> list[str]:
    [fields] = csv.reader([line], delimiter=separator) if line else [[]]
    return [field.strip() for field in fields]


def _columns(first: Sequence[str], path: str) -> tuple[tuple[int, int], bool]:
    """Find the columns of guide and gene, and whether the first line is a header."""
    names = [name.casefold().replace(" ", "_") for name in first]
    guide = next((names.index(name) for name in GUIDE_COLUMNS if name in names), None)
    gene = next((names.index(name) for name in GENE_COLUMNS if name in names), None)
    if guide is not None and gene is not None and guide != gene:
        return (guide, gene), True
    if len(first) > 2:
        raise InputError(
            f"{path}: {len(first)} columns, and the first line does not say which are the guide "
            "and its gene. Keep two columns, or name them 'guide' and 'gene' in a first line."
        )
    return (0, 1), False


def kind_of_guide(guide: str, target: str | None, controls: LabelSet) -> str:
    """Classify a guide as targeting, non-targeting or safe-targeting."""
    if target is not None and target not in controls and target != CONTROL:
        return TARGETING
    named = f"{guide} {target or ''}"
    return SAFE_TARGETING if SAFE_LIKE.fullmatch(named) else NON_TARGETING


def guide_frame(targets: Mapping[str, str | None], controls: LabelSet) -> pd.DataFrame:
    """Tabulate guides with their targets.

    Parameters
    ----------
    targets
        Target gene of each guide; None, or a control label, for those without one.
    controls
        Labels of control.

    Returns
    -------
    DataFrame
        ``guide``, ``target`` (``control`` without a target gene) and ``kind``.
    """
    rows = []
    for guide, target in targets.items():
        kind = kind_of_guide(guide, target, controls)
        rows.append((guide, target if kind == TARGETING else CONTROL, kind))
    return pd.DataFrame(rows, columns=["guide", "target", "kind"])


FEWEST_CELLS = 10  # with counts of a guide, for a mixture to be fitted
STEPS = 500
TOLERANCE = 1e-8
SMALLEST = 1e-6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calls:
    """Called guides of cells.

    Attributes
    ----------
    present
        Cells x guides, 1 for a called guide.
    thresholds
        Smallest UMI count of each called guide; NaN for a guide that is never called.
    """

    present: sparse.csr_matrix
    thresholds: np.ndarray


def call_guides(
    counts: sparse.csr_matrix, threshold: int | None, mixture: str | None, where: str
) -> Calls:
    """Call guides present or absent.

    Parameters
    ----------
    counts
        UMI counts, cells x guides.
    threshold
        Smallest UMI count of a called guide.
    mixture
        Without a threshold, the mixture that determines one for each guide.
    where
        File and element, for messages.

    Returns
    -------
    Calls
        The called guides.

    Raises
    ------
    InputError
        If the values are not counts, or no guide has enough cells for a mixture.
    """
    values = counts.data
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.floor(values)).any():
        raise InputError(
            f"{where}: the values are no UMI counts of guides, since some are no integers. "
            "'threshold' and 'mixture' need raw counts."
        )
    if threshold is not None:
        thresholds = np.full(counts.shape[1], float(threshold))
    else:
        thresholds = mixture_thresholds(counts.tocsc(), str(mixture), where)
    entries = counts.tocoo()
    kept = entries.data >= thresholds[entries.col]  # False for NaN
    present = sparse.csr_matrix(
        (np.ones(int(kept.sum()), np.float32), (entries.row[kept], entries.col[kept])),
        shape=counts.shape,
    )
    return Calls(present, thresholds)


def mixture_thresholds(counts: sparse.csc_matrix, mixture: str, where: str) -> np.ndarray:
    """Determine the threshold of each guide by a mixture.

    A guide with few cells gets the median threshold of the others.

    Parameters
    ----------
    counts
        UMI counts, cells x guides.
    mixture
        ``poisson_gaussian`` or ``poisson``.
    where
        File and element, for messages.

    Raises
    ------
    InputError
        If no guide has enough cells.
    """
    fit = {"poisson_gaussian": poisson_gaussian_threshold, "poisson": poisson_threshold}[mixture]
    thresholds = np.full(counts.shape[1], np.nan)
    few = []
    for guide in range(counts.shape[1]):
        positive = counts.data[counts.indptr[guide] : counts.indptr[guide + 1]]
        positive = positive[positive > 0]
        found = fit(positive, counts.shape[0]) if len(positive) >= FEWEST_CELLS else None
        if found is None:
            few.append(guide)
        else:
            thresholds[guide] = found
    if len(few) == counts.shape[1]:
        raise InputError(
            f"{where}: no guide has cells enough ({FEWEST_CELLS}) with two levels of counts for a "
            "mixture. Set 'threshold', for instance to 5."
        )
    if few:
        thresholds[few] = np.nanmedian(thresholds)
        logger.info(
            "%s: %d of %d guides have too few cells for a mixture, and get the median threshold "
            "of the others, %g UMIs",
            where, len(few), counts.shape[1], np.nanmedian(thresholds),
        )  # fmt: skip
    return thresholds


def poisson_threshold(positive: np.ndarray, n_cells: int) -> float | None:
    """Fit two Poisson components by expectation-maximisation.

    Parameters
    ----------
    positive
        Counts above 0 of a guide.
    n_cells
        Number of cells, including those without counts.

    Returns
    -------
    float or None
        The smallest count with a posterior probability above 1/2 of the component with the larger
        mean; None if there is a single component.
    """
    values, cells = np.unique(positive, return_counts=True)
    if values[0] > 0:
        values = np.concatenate([[0.0], values])
        cells = np.concatenate([[n_cells - len(positive)], cells])
    mean = float(values @ cells / cells.sum())
    low, high, fraction = SMALLEST + mean / 10, float(values[-1]), 0.05
    for _ in range(STEPS):
        of_high = special.expit(_poisson_odds(values, low, high, fraction))
        weight, rest = cells * of_high, cells * (1 - of_high)
        if weight.sum() < SMALLEST or rest.sum() < SMALLEST:
            return None
        new_high = float(weight @ values / weight.sum())
        new_low = max(float(rest @ values / rest.sum()), SMALLEST)
        moved = abs(new_high - high) + abs(new_low - low)
        low, high, fraction = new_low, new_high, float(weight.sum() / cells.sum())
        if moved < TOLERANCE * high:
            break
    if high < 2 * low or not 0 < fraction < 1:
        return None
    # the log odds increase with the count, and are 0 at a probability of 1/2
    even = (np.log1p(-fraction) - np.log(fraction) + high - low) / np.log(high / low)
    return float(max(np.floor(even) + 1, 1))


def _poisson_odds(values: np.ndarray, low: float, high: float, fraction: float) -> np.ndarray:
    return np.log(fraction) - np.log1p(-fraction) + values * np.log(high / low) - (high - low)


def poisson_gaussian_threshold(positive: np.ndarray, n_cells: int) -> float | None:
    """Fit a Poisson and a Gaussian component to log2 counts by expectation-maximisation.

    Parameters
    ----------
    positive
        Counts above 0 of a guide.
    n_cells
        Not used: cells without a count are background.

    Returns
    -------
    float or None
        The smallest count above the background's mean from which on the Gaussian component has a
        posterior probability above 1/2; None if there is a single component.
    """
    counts, cells = np.unique(positive, return_counts=True)
    if len(counts) < 3:
        return None
    values = np.log2(counts)
    n = cells.sum()
    middle = values[-1] / 2
    rate = max(float(np.average(values, weights=cells * (values <= middle) + SMALLEST)), SMALLEST)
    mean = float(np.average(values, weights=cells * (values > middle) + SMALLEST))
    std, fraction = 1.0, 0.5
    for _ in range(STEPS):
        odds = _gaussian_odds(values, rate, mean, std, fraction)
        of_high = special.expit(odds)
        weight, rest = cells * of_high, cells * (1 - of_high)
        if weight.sum() < 1 or rest.sum() < SMALLEST:
            return None
        before = (rate, mean, std, fraction)
        mean = float(weight @ values / weight.sum())
        std = max(float(np.sqrt(weight @ (values - mean) ** 2 / weight.sum())), 0.1)
        rate = max(float(rest @ values / rest.sum()), SMALLEST)
        fraction = float(weight.sum() / n)
        if max(abs(a - b) for a, b in zip(before, (rate, mean, std, fraction), strict=True)) < (
            TOLERANCE
        ):
            break
    if mean <= rate:
        return None
    # a wide Gaussian is also above the Poisson below the background: use the upper crossing
    every = np.arange(1.0, counts[-1] + 1) if counts[-1] < 1e6 else counts
    is_high = _gaussian_odds(np.log2(every), rate, mean, std, fraction) > 0
    is_high &= np.log2(every) > rate
    is_high[np.log2(every) >= mean] = True
    background = np.flatnonzero(~is_high)
    return float(every[background[-1] + 1]) if len(background) else float(every[0])


def _gaussian_odds(
    values: np.ndarray, rate: float, mean: float, std: float, fraction: float
) -> np.ndarray:
    gaussian = -0.5 * ((values - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi))
    poisson = values * np.log(rate) - rate - special.gammaln(values + 1)
    log_fraction = np.log(min(max(fraction, SMALLEST), 1 - SMALLEST))
    log_rest = np.log1p(-min(max(fraction, SMALLEST), 1 - SMALLEST))
    return np.asarray(log_fraction - log_rest + gaussian - poisson)
