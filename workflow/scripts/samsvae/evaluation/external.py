"""Predictions of other tools: files of effects or of cells, validated against the screen."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.evaluation.effects import group_means
from samsvae.evaluation.expression import CP10K, cp10k, expression_in_blocks, log_cp10k
from samsvae.evaluation.marginal import mean_profiles
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import has_marginal_effects, library_sizes, perturbations
from samsvae.screen.labels import CONTROL, components, label_of, split_dose
from samsvae.screen.splits import TEST, TRAIN
from samsvae.screen.validation import check_counts, check_names, refuse_empty_cells
from samsvae.sources.h5ad_file import AnnDataFile, counts_of, open_h5ad, read_column, read_names

CELLS, NO_CHANGE = "cells", "no_change"
SHOWN = 5

# limits of check_scale, which docs/models.md explains
EXPRESSION_SLOPE = 0.5  # of predictions on control expression, from which they are no effects
BEYOND_RANGE = 0.2  # fraction of the sum of absolute effects that no expression could have
TIMES_OBSERVED, DOUBTFUL_TIMES = 5.0, 2.5  # size of predicted effects relative to observed ones
LINEAR_GAIN, DOUBTFUL_GAIN = 0.1, 0.05  # by which effects on CP10k correlate better
LEAST_CORRELATION = 0.5  # with effects on CP10k, for which the gain counts
OTHER_LOGARITHMS = {"natural": np.log2(np.e), "decimal": np.log2(10)}
SLOPE_TOLERANCE = 0.13  # relative, of the slope that another logarithm would have
CLOSE_CORRELATION = 0.9
LEAST_PROFILE, DOUBTFUL_PROFILE = 0.5, 0.9  # correlation of predicted and measured expression
TIMES_DEPTH = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionFile:
    """A file of another tool, and what the configuration says of it.

    Attributes
    ----------
    path
        An h5ad file.
    content
        ``effects`` or ``cells``.
    control
        Label of control cells.
    perturbation_column
        Column of obs with labels; None for the default of the content.
    delimiter
        Delimiter of the perturbations of a combination; None without combinations.
    counts_layer
        Layer of the counts of cells; None for X.
    missing
        ``refuse`` or ``no_change``.
    """

    path: str
    content: str = "effects"
    control: str = CONTROL
    perturbation_column: str | None = None
    delimiter: str | None = "+"
    counts_layer: str | None = None
    missing: str = "refuse"

    @classmethod
    def of(cls, path: str | Path, settings: Mapping[str, Any]) -> "PredictionFile":
        """Combine a path with the settings of a model of the kind ``external``."""
        own = {key: value for key, value in settings.items() if key not in ("kind", "path")}
        return cls(str(path), **own)

    def check(self) -> None:
        """Check names, labels and, of effects, values, without reading any counts.

        Raises
        ------
        InputError
            If the file is missing or damaged, names are not unique, or effects are not finite.
        """
        with self._opened() as (file, genes):
            labels = self._labels(file, ())
            matrix = counts_of(file, self.counts_layer)
            if self.content == CELLS:
                return
            self._refuse_repeated(labels)
            for rows, values in matrix.blocks():
                self._refuse_non_finite(values, labels.to_numpy()[rows], genes)

    def effects_on(self, screen: anndata.AnnData, parts: "pd.Series[str]") -> np.ndarray:
        """Read the predicted effects of a screen's perturbations.

        Parameters
        ----------
        screen
            Canonical screen.
        parts
            Split of each cell, as in split.tsv.

        Returns
        -------
        ndarray
            Perturbations x genes of the screen, log2(CP10k + 1).

        Raises
        ------
        InputError
            If the file is not valid, lacks perturbations or genes, or has another scale.
        """
        names, genes = perturbations(screen), screen.var_names
        with self._opened() as (file, there):
            labels = self._labels(file, names)
            place = there.get_indexer(genes)
            has_gene, has_name = place >= 0, pd.Index(names).isin(labels)
            self._check_complete(screen, parts, pd.Series(has_name, names), has_gene)
            ignored = sorted(set(labels) - {*names, CONTROL})
            if ignored:
                logger.info(
                    "%s: ignored perturbations that the screen does not have: %s",
                    self.path, _some(ignored),
                )  # fmt: skip
            effects = np.zeros((len(names), screen.n_vars))
            read = self._of_cells if self.content == CELLS else self._of_effects
            found = read(file, labels, place[has_gene], screen, parts)
        rows = np.flatnonzero(has_name)
        effects[np.ix_(rows, np.flatnonzero(has_gene))] = found
        check_scale(effects, rows, screen, self.path)
        return effects

    @contextmanager
    def _opened(self) -> Iterator[tuple[AnnDataFile, pd.Index]]:
        """Open the file; yield it with the names of its genes, which are unique."""
        with open_h5ad(self.path) as file:
            genes = read_names(file, "var")
            check_names(genes, "gene", self.path)
            yield file, genes

    def _labels(self, file: AnnDataFile, known: Sequence[str]) -> "pd.Series[str]":
        """Read the perturbation of each row as a canonical label."""
        column = self.perturbation_column or ("perturbation" if self.content == CELLS else None)
        if column is None:
            written = pd.Series(read_names(file, "obs"), dtype=object)
        else:
            written = read_column(file, "obs", column).astype(object)
            if written.isna().any():
                raise InputError(
                    f"{self.path}: obs[{column!r}]: {int(written.isna().sum()):,} row(s) have no "
                    f"label, the first at position {int(np.argmax(written.isna()))} (counting from "
                    "0). Remove these rows."
                )
        of_text = {one: self.canonical(str(one), frozenset(known)) for one in written.unique()}
        return written.map(of_text)

    def canonical(self, label: str, known: frozenset[str]) -> str:
        """Bring a label into canonical form; one of the `known` names stays as it is."""
        text = label.strip()
        if text in known:
            return text
        if text == self.control:
            return CONTROL
        parts = [text] if self.delimiter is None else text.split(self.delimiter)
        stripped = [part.strip() for part in parts]
        if not all(stripped):
            raise InputError(
                f"{self.path}: the label {label!r} has an empty part. Correct it, or set the "
                f"model's 'delimiter', now {self.delimiter!r}."
            )
        return label_of(dict(split_dose(part) for part in stripped if part != self.control))

    def _refuse_repeated(self, labels: "pd.Series[str]") -> None:
        twice = labels[labels.duplicated()].unique()
        if len(twice):
            raise InputError(
                f"{self.path}: {len(twice)} perturbation(s) have more than one row of effects, for "
                f"instance {_some(twice)} (A+B and B+A are one). Keep one row of each; if rows are "
                "cells, set the model's 'content' to 'cells'."
            )

    def _refuse_non_finite(
        self, values: sparse.csr_matrix, labels: np.ndarray, genes: pd.Index
    ) -> None:
        wrong = np.flatnonzero(~np.isfinite(values.data))
        if len(wrong):
            row = int(np.searchsorted(values.indptr, wrong[0], side="right")) - 1
            raise InputError(
                f"{self.path}: {len(wrong):,} value(s) are not finite numbers (first: "
                f"{values.data[wrong[0]]} of {labels[row]}, gene "
                f"{genes[values.indices[wrong[0]]]}). Leave out perturbations and genes without a "
                "prediction, and set the model's 'missing' to 'no_change' if they are to have none."
            )

    def _check_complete(
        self,
        screen: anndata.AnnData,
        parts: "pd.Series[str]",
        has_name: "pd.Series[bool]",
        has_gene: np.ndarray,
    ) -> None:
        """Refuse a file that lacks perturbations or genes, or everything."""
        absent = list(has_name.index[~has_name])
        tested = set(screen.obs["perturbation"][(parts == TEST).to_numpy()])
        if has_marginal_effects(screen):
            tested = {part for label in tested for part in components(label)}
        n_tested = sum(name in tested for name in absent)
        lacks = []
        if absent:
            lacks.append(
                f"{len(absent)} of {len(has_name)} perturbations ({_some(absent)}; {n_tested} of "
                "them with test cells)"
            )
        if not has_gene.all():
            names = screen.var_names[~has_gene]
            lacks.append(f"{len(names)} of {len(has_gene)} genes ({_some(names)})")
        if not lacks:
            return
        said = f"{self.path} has no prediction for {' and '.join(lacks)} of the screen"
        if not has_name.any() or not has_gene.any():
            raise InputError(
                f"{said}: none is the same. Names are compared exactly: use those of screen.h5ad, "
                "and look at the model's 'perturbation_column', 'delimiter' and 'control'."
            )
        if self.missing != NO_CHANGE:
            raise InputError(
                f"{said}. Predict them, or set the model's 'missing' to 'no_change', by which "
                "their effect is 0."
            )
        logger.warning("%s; their effect is taken to be 0", said)

    def _of_effects(
        self,
        file: AnnDataFile,
        labels: "pd.Series[str]",
        place: np.ndarray,
        screen: anndata.AnnData,
        parts: "pd.Series[str]",
    ) -> np.ndarray:
        """Read effects of the perturbations that the file has, in the order of the screen."""
        self._refuse_repeated(labels)
        names = pd.Index(perturbations(screen))
        genes = read_names(file, "var")[place]
        found = np.zeros((len(labels), len(place)))
        for rows, values in counts_of(file, self.counts_layer).blocks(genes=place):
            self._refuse_non_finite(values, labels.to_numpy()[rows], genes)
            found[rows] = values.toarray()
        of_control = found[(labels == CONTROL).to_numpy()]
        if np.abs(of_control).sum() > 0:
            raise InputError(
                f"{self.path}: the row of {CONTROL!r} is not 0 (mean "
                f"{np.abs(of_control).mean():.2g}), so the values are expression, not effects. "
                f"Subtract this row from the others; the scale of effects is log2(CP10k + 1)."
            )
        return found[pd.Index(labels).get_indexer(names[names.isin(labels)])]

    def _of_cells(
        self,
        file: AnnDataFile,
        labels: "pd.Series[str]",
        place: np.ndarray,
        screen: anndata.AnnData,
        parts: "pd.Series[str]",
    ) -> np.ndarray:
        """Compute effects of the perturbations that have cells, in the order of the screen."""
        matrix = counts_of(file, self.counts_layer)
        names = [name for name in perturbations(screen) if name in set(labels)]
        counted_everywhere = "library_size_column" in screen.uns
        depths: list[np.ndarray] = []

        def blocks() -> Iterator[tuple[sparse.csr_matrix, pd.Series]]:
            for rows, values in matrix.blocks():
                every = check_counts(values, matrix.where, cells=rows)
                counts = sparse.csr_matrix(every[:, place])
                sizes = library_sizes(every if counted_everywhere else counts)
                refuse_empty_cells(rows[sizes == 0], matrix.where)
                depths.append(sizes)
                yield log_cp10k(counts, sizes), labels.iloc[rows]

        means = group_means(blocks(), names, len(place))
        there = screen.var_names.get_indexer(read_names(file, "var")[place])
        trained = ((screen.obs["perturbation"] == CONTROL) & (parts == TRAIN)).to_numpy()
        measured = _control_mean(screen, trained)[there]
        has_control = means.n_cells[-1] > 0
        own = means.mean[-1] if has_control else measured
        expected = own if has_control else means.mean[:-1].mean(axis=0)
        self._check_profile(_correlation(expected, measured))
        ratio = float(np.median(np.concatenate(depths)) / screen.obs["library_size"].median())
        if not has_control:
            logger.warning(
                "%s has no cells of %r: effects are relative to the measured control cells of the "
                "training cells",
                self.path, self.control,
            )  # fmt: skip
        if not 1 / TIMES_DEPTH <= ratio <= TIMES_DEPTH:
            logger.warning(
                "%s: the median library size of its cells is %.2g times that of the screen; "
                "effects on log2(CP10k + 1) depend on it. Predict cells of the "
                "library sizes of the screen",
                self.path, ratio,
            )  # fmt: skip
        return means.mean[:-1] - own

    def _check_profile(self, correlation: float) -> None:
        said = (
            f"{self.path}: mean expression of its cells and of measured control cells correlate by "
            f"{correlation:.2f} over genes"
        )
        if correlation < LEAST_PROFILE:
            raise InputError(
                f"{said}, so that genes seem to have wrong names or values are no counts. Check "
                "the order of var_names, and the layer."
            )
        if correlation < DOUBTFUL_PROFILE:
            logger.warning("%s; check the names of genes", said)


def check_scale(effects: np.ndarray, rows: np.ndarray, screen: anndata.AnnData, where: str) -> None:
    """Refuse effects on another scale than log2(CP10k + 1), and warn of doubtful ones.

    Observed effects of all cells are used for this check alone.

    Parameters
    ----------
    effects
        Perturbations x genes of the screen.
    rows
        Those that are predicted.
    screen
        Canonical screen.
    where
        The file, for messages.

    Raises
    ------
    InputError
        If the effects are expression, exceed the range of expression, are many times larger than
        observed ones, or follow observed effects on CP10k rather than on log2(CP10k + 1).
    """
    predicted = effects[rows]
    remedy = "Effects are differences of mean log2(CP10k + 1) from control cells: convert them."
    if not predicted.any():
        logger.warning("%s: every predicted effect is 0", where)
        return
    control = _control_mean(screen, (screen.obs["perturbation"] == CONTROL).to_numpy())
    slope = float(np.median(predicted @ control) / (control @ control))
    if slope > EXPRESSION_SLOPE:
        raise InputError(
            f"{where}: the values follow the expression of control cells (slope {slope:.2f}), so "
            f"they are expression, not effects. {remedy}"
        )
    level = predicted + control
    beyond = np.maximum(-level, 0) + np.maximum(level - np.log2(1 + CP10K), 0)
    excess = float(beyond.sum() / np.abs(predicted).sum())
    if excess > BEYOND_RANGE:
        raise InputError(
            f"{where}: {excess:.0%} of the sum of absolute effects would take genes below 0 or "
            f"above {np.log2(1 + CP10K):.1f} on log2(CP10k + 1). {remedy}"
        )
    if has_marginal_effects(screen):
        return
    _compare_with_observed(predicted, rows, screen, where, remedy)


def _compare_with_observed(
    predicted: np.ndarray, rows: np.ndarray, screen: anndata.AnnData, where: str, remedy: str
) -> None:
    names = [perturbations(screen)[row] for row in rows]
    means = group_means(expression_in_blocks(screen), names, screen.n_vars)
    linear = group_means(expression_in_blocks(screen, scale=cp10k), names, screen.n_vars)
    observed, error = means.effects()
    on_linear = linear.mean[:-1] - linear.mean[-1]
    sizes = np.linalg.norm(predicted, axis=1), np.linalg.norm(observed, axis=1)
    times = float(np.median(sizes[0]) / max(float(np.median(sizes[1])), np.finfo(float).tiny))
    if times > TIMES_OBSERVED:
        raise InputError(
            f"{where}: predicted effects are {times:.1f} times as large as observed ones (median "
            f"norm), as on CP10k or counts. {remedy}"
        )
    of_log, of_linear = (_correlation(predicted, other) for other in (observed, on_linear))
    gain = of_linear - of_log if of_linear > LEAST_CORRELATION else 0.0
    said = (
        f"{where}: predicted effects correlate with observed ones better on CP10k "
        f"({of_linear:.2f}) than on log2(CP10k + 1) ({of_log:.2f}), as if no logarithm had been "
        "taken"
    )
    if gain > LINEAR_GAIN:
        raise InputError(f"{said}. {remedy}")
    if gain > DOUBTFUL_GAIN:
        logger.warning("%s", said)
    if times > DOUBTFUL_TIMES:
        logger.warning(
            "%s: predicted effects are %.1f times as large as observed ones; check their scale",
            where, times,
        )  # fmt: skip
    # sampling noise of observed effects adds to their sum of squares, not to that of products
    signal = float((observed**2).sum() - np.nansum(error**2))
    products, squares = float((predicted * observed).sum()), float((predicted**2).sum())
    close = signal > np.nansum(error**2) and products > CLOSE_CORRELATION * np.sqrt(
        squares * signal
    )
    for logarithm, factor in OTHER_LOGARITHMS.items():
        if close and abs(products / squares / factor - 1) < SLOPE_TOLERANCE:
            logger.warning(
                "%s: observed effects are %.2f times the predicted ones, as shrinkage does, or the "
                "%s logarithm; multiply them by %.3f if it is the logarithm",
                where, products / squares, logarithm, factor,
            )  # fmt: skip


def _control_mean(screen: anndata.AnnData, cells: np.ndarray) -> np.ndarray:
    """Average the expression of some control cells; of all cells if there is none."""
    if not cells.any():
        return np.asarray(mean_profiles(screen, np.ones(screen.n_obs, dtype=bool), []))[-1]
    return group_means(expression_in_blocks(screen, cells), [], screen.n_vars).mean[-1]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / size) if size else 0.0


def _some(names: Sequence[str] | np.ndarray | pd.Index) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")
