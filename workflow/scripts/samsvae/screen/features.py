"""Features of perturbations, and regressions of effects on them.

Features tell what is known of a perturbation before it is measured, such as the pathways of its
gene. A user's table has a row for each perturbation. In place of a table, a perturbation can be
represented by the gene that it targets: by its scores on the principal components of the mean
expression of training cells.

The regressions choose their penalty by its marginal likelihood (empirical Bayes), averaged over a
grid, so that the weights of features that explain nothing shrink to 0 and leave the mean.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.special import expit, log_expit

from samsvae.config.models import EXPRESSION
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import counts_in_blocks
from samsvae.screen.design import Design

FEWEST_PERTURBATIONS = 3  # with training cells and features, for a regression
LARGEST_BLOCK = 2**26  # elements, of cells x genes
SHOWN = 5  # names in a message
NEGLIGIBLE = 1e-6  # relative to the largest singular value, or to the magnitude of a column
# prior variances of W f_t relative to the residual variance, and of v . f_t
VARIANCE_RATIOS = np.array([1e-6, 1 / 16, 1 / 4, 1.0, 4.0, 16.0])
LOGIT_VARIANCES = np.array([1e-6, 1 / 4, 1.0, 4.0])
INTERCEPT_RATIO, INTERCEPT_LOGIT_VARIANCE = 1.0, 9.0  # of the same, of intercepts
LOGISTIC_ITERATIONS = 30

logger = logging.getLogger(__name__)


def read_features(path: str | Path) -> pd.DataFrame:
    """Read a table of features: perturbation in the first column, one feature in each other.

    Parameters
    ----------
    path
        Text file with a header. Columns are separated by commas if the name ends in .csv (or
        .csv.gz), else by tabs.

    Returns
    -------
    DataFrame
        Perturbations x features, float64.

    Raises
    ------
    InputError
        If the file is missing or no table, a perturbation or a column occurs twice, a column is
        not numeric, or a value is missing or infinite.
    """
    name = str(path).removesuffix(".gz")
    separator = "," if name.endswith(".csv") else "\t"
    where = f"perturbation_features: {path}"
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, header=None)
    except FileNotFoundError:
        raise InputError(
            f"{where}: no such file. Set it to a table, or to {EXPRESSION!r}."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read as a table of columns with "
            f"{'commas' if separator == ',' else 'tabs'} between them: {str(error).strip()}"
        ) from None
    columns, table = list(table.iloc[0, 1:]), table.iloc[1:]
    if table.empty or not columns:
        kind = "commas" if separator == "," else "tabs"
        raise InputError(
            f"{where} has no features. It needs a header, the perturbation in the first column and "
            f"a feature in each other one, separated by {kind}."
        )
    names = pd.Index(table.iloc[:, 0].str.strip())
    for what, labels in (("perturbation", names), ("feature", pd.Index(columns))):
        twice = labels[labels.duplicated()]
        if len(twice):
            raise InputError(f"{where} has the {what} {twice[0]!r} twice; keep one of them.")
    values = table.iloc[:, 1:].set_axis(names).set_axis(columns, axis=1)
    numbers = values.apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = np.argwhere(~np.isfinite(numbers.to_numpy()))
    if len(wrong):
        row, column = wrong[0]
        raise InputError(
            f"{where} has {len(wrong)} values that are no finite numbers (first: "
            f"{values.iloc[row, column]!r} of {names[row]!r}, feature {columns[column]!r}). Fill "
            "them in, or leave out the feature; encode categories as columns of 0 and 1."
        )
    return numbers


def check_covered(features: pd.DataFrame, names: Sequence[str], path: str | Path) -> None:
    """Refuse a table of features that lacks perturbations.

    Raises
    ------
    InputError
        Naming the perturbations without a row.
    """
    missing = [name for name in names if name not in features.index]
    if missing:
        raise InputError(
            f"perturbation_features: {path} has no row for {len(missing)} of {len(names)} "
            f"perturbations of the screen: {_some(missing)}. Add their features, or exclude them "
            "from the screen; names are compared exactly, capitals included."
        )


def check_sources(
    sources: Sequence[str], names: Sequence[str], trained: Sequence[str], genes: Sequence[str]
) -> None:
    """Check tables of features, and whether there are enough to learn from, before training.

    Parameters
    ----------
    sources
        Paths of tables, or ``expression``.
    names, trained
        Perturbations of the screen, and those of them with training cells.
    genes
        Measured genes.

    Raises
    ------
    InputError
        As of :meth:`PerturbationFeatures.of_screen`.
    """
    for source in sources:
        known = genes
        if source != EXPRESSION:
            table = read_features(source)
            check_covered(table, names, source)
            known = list(table.index)
        _check_enough(len(set(known) & set(trained)))


def _check_enough(number: int) -> None:
    if number < FEWEST_PERTURBATIONS:
        raise InputError(
            f"perturbation_features: {number} perturbation(s) with features have training cells; "
            f"at least {FEWEST_PERTURBATIONS} are needed to learn from features. With "
            f"{EXPRESSION!r}, these are perturbations of measured genes: use a table of features "
            "that covers all perturbations, or train on more of them."
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def expression_components(
    screen: anndata.AnnData, train: np.ndarray, n_components: int
) -> pd.DataFrame:
    """Compute the scores of genes on principal components of mean training profiles.

    Parameters
    ----------
    screen
        Canonical screen.
    train
        Boolean, the training cells.
    n_components
        Number of components, at most that of the profiles.

    Returns
    -------
    DataFrame
        Genes x components. The profiles are mean expressions, log2(CP10k + 1), of training cells
        with each perturbation, whatever others they have, and of control cells.
    """
    has = Design.of_screen(screen).matrix != 0
    control = sparse.csr_matrix(np.diff(has.indptr)[:, None] == 0)
    groups = sparse.csr_matrix(sparse.hstack([has, control]), dtype=np.float64)
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    total = np.zeros((groups.shape[1], screen.n_vars))
    for rows, counts in counts_in_blocks(screen, train, LARGEST_BLOCK):
        expression = sparse.csr_matrix(sparse.diags_array(1e4 / library_size[rows]) @ counts)
        expression.data = np.log2(1 + expression.data)
        total += (groups[rows].T @ expression).toarray()
    number = np.asarray(groups[train].sum(axis=0)).ravel()
    profiles = total[number > 0] / number[number > 0, None]
    return pd.DataFrame(principal_components(profiles.T, n_components), index=screen.var_names)


def principal_components(matrix: np.ndarray, number: int) -> np.ndarray:
    """Compute scores of rows on the first principal components, columns centred."""
    left, singular, _ = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    return left[:, :number] * singular[:number]


@dataclass(frozen=True)
class PerturbationFeatures:
    """Features of perturbations, as regressions take them.

    Attributes
    ----------
    values
        Perturbations x features: principal components over training perturbations, centred, with a
        mean sum of squares of 1 over these; 0 for a perturbation without features.
    is_trained
        Which perturbations have training cells.
    """

    values: np.ndarray
    is_trained: np.ndarray

    @classmethod
    def of(
        cls, raw: np.ndarray, is_trained: np.ndarray, n_components: int, scale: bool = True
    ) -> "PerturbationFeatures":
        """Standardise features over training perturbations and rotate them to components.

        Parameters
        ----------
        raw
            Perturbations x features, NaN for perturbations without features.
        is_trained
            Which perturbations have training cells.
        n_components
            Largest number of principal components.
        scale
            Whether each feature is divided by its standard deviation, not centred alone.

        Raises
        ------
        InputError
            If fewer than three training perturbations have features.
        """
        values = standardised(raw, is_trained, scale)
        known = is_trained & np.isfinite(raw).all(axis=1)
        _, singular, directions = np.linalg.svd(values[known], full_matrices=False)
        kept = (singular > NEGLIGIBLE * max(singular.max(initial=0), 1e-300))[:n_components]
        directions = directions[: len(kept)][kept]
        scores = values @ directions.T
        # of either sign, whose largest score is positive
        largest = np.abs(scores[known]).argmax(axis=0)
        scores *= np.sign(scores[known][largest, np.arange(scores.shape[1])])
        size = np.square(scores[known]).sum() / known.sum()
        return cls(scores / np.sqrt(size) if size else scores, is_trained)

    @classmethod
    def of_screen(
        cls,
        source: str,
        screen: anndata.AnnData,
        train: np.ndarray,
        names: Sequence[str],
        n_components: int,
    ) -> "PerturbationFeatures":
        """Compute the features of the perturbations of a screen.

        Parameters
        ----------
        source
            Path of a table, or ``expression``.
        screen
            Canonical screen.
        train
            Boolean, the training cells.
        names
            Perturbations.
        n_components
            Largest number of principal components.

        Raises
        ------
        InputError
            If the table is not valid or lacks a perturbation, or if fewer than three training
            perturbations have features.
        """
        raw = raw_features(source, screen, train, names, n_components)
        trained = set(Design.of_screen(screen)[train].names)
        is_trained = np.array([name in trained for name in names])
        return cls.of(raw, is_trained, n_components, scale=source != EXPRESSION)


def raw_features(
    source: str,
    screen: anndata.AnnData,
    train: np.ndarray,
    names: Sequence[str],
    n_components: int,
) -> np.ndarray:
    """Look up the features of perturbations, perturbations x features.

    Parameters and errors are those of :meth:`PerturbationFeatures.of_screen`. A perturbation whose
    target is not measured has no ``expression`` and gets NaN; a table must have all of them.
    """
    if source != EXPRESSION:
        table = read_features(source)
        check_covered(table, names, source)
        return table.loc[list(names)].to_numpy()
    genes = expression_components(screen, train, n_components)
    unmeasured = [name for name in names if name not in genes.index]
    if unmeasured:
        logger.info(
            "%d of %d target genes are not measured and have no features: %s",
            len(unmeasured), len(names), _some(unmeasured),
        )  # fmt: skip
    return genes.reindex(list(names)).to_numpy()


def standardised(raw: np.ndarray, is_trained: np.ndarray, scale: bool = True) -> np.ndarray:
    """Standardise features by training perturbations; 0 for perturbations without features.

    Parameters
    ----------
    raw, is_trained, scale
        As of :meth:`PerturbationFeatures.of`. A feature that is constant over training
        perturbations becomes 0.

    Raises
    ------
    InputError
        If fewer than three training perturbations have features.
    """
    has = np.isfinite(raw).all(axis=1)
    known = raw[is_trained & has]
    _check_enough(len(known))
    mean, std = known.mean(axis=0), known.std(axis=0)
    varies = std > NEGLIGIBLE * np.abs(known).max(axis=0)
    factor = np.where(varies, 1 / np.where(varies, std, 1) if scale else 1.0, 0.0)
    return np.where(has[:, None], (raw - mean) * factor, 0.0)


def ridge_weights(
    features: np.ndarray, response: np.ndarray, weight: np.ndarray, scale: float
) -> np.ndarray:
    r"""Regress responses on features, with the penalty that their marginal likelihood supports.

    For each response k, with weights g_tk and residual variance r^2, which all responses share::

        y_tk ~ N(b_k + W_k . f_t, r^2 / g_tk),  b_k ~ N(0, r^2),  W_k ~ N(0, c r^2 I)

    Posterior means of (b, W) are averaged over a grid of c by the marginal likelihood, in which r^2
    is integrated out under an inverse Gamma prior worth two observations of `scale` squared.

    Parameters
    ----------
    features
        f, T x F.
    response, weight
        y and g, T x K.
    scale
        Standard deviation that residuals are expected to have.

    Returns
    -------
    ndarray
        K x (1 + F), the intercepts first.
    """
    X = _with_intercept(features)
    gram = np.einsum("ti,tk,tj->kij", X, weight, X)
    crossed = np.einsum("ti,tk->ki", X, weight * response)
    squares, number = (weight * response**2).sum(), weight.sum()
    found, evidence = [], []
    for ratio in VARIANCE_RATIOS:
        variance = np.array([INTERCEPT_RATIO, *[ratio] * features.shape[1]])
        precision = gram + np.diag(1 / variance)
        weights = np.linalg.solve(precision, crossed[..., None])[..., 0]
        rest = squares - (crossed * weights).sum()
        volume = np.linalg.slogdet(precision)[1].sum() + len(gram) * np.log(variance).sum()
        found.append(weights)
        evidence.append(-0.5 * (volume + (number + 2) * np.log(max(rest, 0) + 2 * scale**2)))
    return np.tensordot(_normalised(evidence), found, axes=1)


def logistic_weights(features: np.ndarray, response: np.ndarray, offset: np.ndarray) -> np.ndarray:
    r"""Regress probabilities on features, with the penalty that the evidence supports.

    For each response k, where y may be an expectation::

        y_tk ~ Bernoulli(sigmoid(o_t + a_k + v_k . f_t)),  a_k ~ N(0, 9),  v_k ~ N(0, c I)

    Modes of (a, v) are averaged over a grid of c by Laplace's approximation of the evidence. The
    modes are found by expectation maximisation over Polya-Gamma variables (Polson et al. 2013),
    which never lowers the posterior density.

    Parameters
    ----------
    features
        f, T x F.
    response
        y, T x K.
    offset
        o, length T.

    Returns
    -------
    ndarray
        K x (1 + F), the intercepts first.
    """
    X = _with_intercept(features)
    offset = offset[:, None]
    found, evidence = [], []
    for variance_of_logits in LOGIT_VARIANCES:
        variance = np.array([INTERCEPT_LOGIT_VARIANCE, *[variance_of_logits] * features.shape[1]])
        weights = np.zeros((response.shape[1], X.shape[1]))
        for _ in range(LOGISTIC_ITERATIONS):
            omega = _polya_gamma_mean(offset + X @ weights.T)
            precision = np.einsum("ti,tk,tj->kij", X, omega, X) + np.diag(1 / variance)
            crossed = np.einsum("ti,tk->ki", X, response - 0.5 - omega * offset)
            weights = np.linalg.solve(precision, crossed[..., None])[..., 0]
        logits = offset + X @ weights.T
        curvature = expit(logits) * expit(-logits)
        hessian = np.einsum("ti,tk,tj->kij", X, curvature, X) + np.diag(1 / variance)
        density = response * log_expit(logits) + (1 - response) * log_expit(-logits)
        volume = np.linalg.slogdet(hessian)[1].sum() + len(weights) * np.log(variance).sum()
        found.append(weights)
        evidence.append(density.sum() - 0.5 * (np.square(weights) / variance).sum() - 0.5 * volume)
    return np.tensordot(_normalised(evidence), found, axes=1)


def _polya_gamma_mean(logits: np.ndarray) -> np.ndarray:
    """Compute tanh(x / 2) / 2 x, which is 1/4 at 0."""
    size = np.maximum(np.abs(logits), NEGLIGIBLE)
    return np.tanh(size / 2) / (2 * size)


def _with_intercept(features: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(features)), features])


def _normalised(evidence: Sequence[float]) -> np.ndarray:
    weights = np.exp(np.array(evidence) - max(evidence))
    return weights / weights.sum()
