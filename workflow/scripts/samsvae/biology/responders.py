"""Responders: the cells of a perturbation that respond to it, by a trained model.

A cell that carries a guide may not be perturbed. The score of a cell of perturbation t is the
logarithm of a likelihood ratio,

    s_i = log p(x_i | d_i) - log p(x_i | d_i without t),

both by importance sampling with the same particles and the same noise. The scores of cells without
t, under t's label, are the null distribution: how non-responders score.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats
from sklearn.isotonic import IsotonicRegression

from samsvae.biology import NULL, PERTURBED
from samsvae.biology.guides import guide_groups
from samsvae.evaluation.expression import log_cp10k
from samsvae.evaluation.strata import strata_of_cells
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import TrainedModel
from samsvae.inference.iwelbo import bounds_of, log_weights_in_batches
from samsvae.inference.posterior import GlobalDraws
from samsvae.runtime.script import Progress
from samsvae.screen.canonical import (
    CONTEXT,
    GUIDE,
    counts_in_blocks,
    has_marginal_effects,
)
from samsvae.screen.design import Design
from samsvae.screen.labels import CONTROL, doses, label_of

LARGEST_BLOCK = 4_000_000  # elements, of cells x genes
LARGEST_MODELLED_BLOCK = 1_000_000
NULL_CELLS = (100, 600)  # fewest and most cells that are scored under a label not their own
MOST_NULL_SCORES = 200_000  # over all perturbations, unless these are the fewest cells
DEPTH_BINS = 4  # in which cells and null cells are compared
LARGEST_OVERLAP = 0.15  # of responders with null cells, beyond which their fraction is unknown
BOOTSTRAPS = 200
INTERVAL = 95  # per cent
FEWEST_CELLS = 10  # of a group whose fraction is estimated
SHOWN_PERTURBATIONS = 12
N_BINS = 40
IQR_OF_NORMAL = 1.349  # interquartile range of a standard normal distribution
RESPONDERS = [
    "perturbation", "guide", "n_cells", "responders", "low", "high", "median_score",
    "null_median", "null_spread", "overlap", "effect_size", "responder_effect_size",
]  # fmt: skip
SCORES = ["perturbation", "kind", "lower", "upper", "density"]


@dataclass(frozen=True)
class NullScores:
    """Scores of cells without a perturbation under its label, with weights.

    Attributes
    ----------
    scores
        In nats.
    weights
        Positive, with the sum 1: they give the null cells the batches and depths of the
        perturbation's cells.
    """

    scores: np.ndarray
    weights: np.ndarray

    def quantile(self, level: float | np.ndarray) -> np.ndarray:
        """Compute quantiles of the weighted scores, by linear interpolation."""
        order = np.argsort(self.scores, kind="stable")
        middle = np.cumsum(self.weights[order]) - self.weights[order] / 2
        return np.interp(level, middle, self.scores[order])

    @cached_property
    def median(self) -> float:
        """Median score."""
        return float(self.quantile(0.5))

    @cached_property
    def spread(self) -> float:
        """Standard deviation of a normal distribution with the same quartiles."""
        lower, upper = self.quantile(np.array([0.25, 0.75]))
        return float(upper - lower) / IQR_OF_NORMAL

    @property
    def overlap(self) -> float:
        """Fraction of responders expected below the null's median.

        If the logarithm of a likelihood ratio has a normal distribution with standard deviation s
        under one hypothesis, it has the same under the other, and the means differ by s^2.
        """
        return float(stats.norm.sf(self.spread))

    def resampled(self, rng: np.random.Generator) -> "NullScores":
        """Draw as many null cells with replacement."""
        drawn = rng.choice(len(self.scores), len(self.scores), p=self.weights)
        return NullScores(self.scores[drawn], np.full(len(drawn), 1 / len(drawn)))


def fraction_of_responders(
    scores: np.ndarray, null: NullScores, seed: int = 0
) -> tuple[float, float, float]:
    """Estimate the fraction of responders among cells.

    Half of the non-responders score below the null's median, and hardly any responder does: the
    fraction is 1 - (fraction of cells below the median) / 0.5, between 0 and 1.

    Parameters
    ----------
    scores
        Of the cells, in nats.
    null
        Scores of cells without the perturbation.
    seed
        Seed of the bootstrap.

    Returns
    -------
    fraction, low, high : float
        With a 95 % interval by bootstrap of cells and null cells. NaN (unknown) for fewer than ten
        cells or null cells, or if responders and null cells overlap too much to be distinguished:
        more than 15 % of the responders would score below the null's median.
    """
    too_few = min(len(scores), len(null.scores)) < FEWEST_CELLS
    if too_few or null.overlap > LARGEST_OVERLAP:
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(seed)
    drawn = [
        _fraction(rng.choice(scores, len(scores)), null.resampled(rng)) for _ in range(BOOTSTRAPS)
    ]
    tail = (100 - INTERVAL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    return _fraction(scores, null), float(low), float(high)


def _fraction(scores: np.ndarray, null: NullScores) -> float:
    return float(np.clip(1 - 2 * (scores < null.median).mean(), 0, 1))


def responder_probability(scores: np.ndarray, null: NullScores, fraction: float) -> np.ndarray:
    """Compute the posterior probability that each cell is a responder.

    In a mixture of non-responders, which score like null cells, and responders, it is one minus the
    local false discovery rate (Efron 2004): 1 - (1 - fraction) f_0(s) / f(s). The ratio of the
    densities of null cells and of cells falls with the score; it is estimated under this constraint
    alone, by isotonic regression.

    Parameters
    ----------
    scores
        Of the cells, in nats.
    null
        Scores of cells without the perturbation.
    fraction
        Fraction of responders.

    Returns
    -------
    ndarray
        Between 0 and 1; NaN for all if the fraction is unknown.
    """
    if not np.isfinite(fraction):
        return np.full(len(scores), np.nan)
    values = np.concatenate([scores, null.scores])
    is_cell = np.repeat([1.0, 0.0], [len(scores), len(null.scores)])
    weights = np.concatenate([np.full(len(scores), 1 / len(scores)), null.weights])
    regression = IsotonicRegression(y_min=0, y_max=1).fit(values, is_cell, weights)
    of_cells = regression.predict(scores)  # f / (f + f_0)
    with np.errstate(divide="ignore"):
        ratio = (1 - of_cells) / of_cells
    return np.clip(1 - (1 - fraction) * ratio, 0, 1)


@dataclass(frozen=True)
class Groups:
    """Pairs of a cell and a perturbation that it has.

    Attributes
    ----------
    names
        Perturbations, or conditions of cells.
    cell, group
        Index of the cell and of the perturbation of each pair.
    """

    names: list[str]
    cell: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, screen: anndata.AnnData) -> "Groups":
        """Pair perturbed cells with their conditions, or with each perturbation they have.

        The latter where the screen's effects are those of single perturbations.
        """
        if has_marginal_effects(screen):
            design = Design.of_screen(screen)
            matrix = design.matrix.tocoo()
            order = np.argsort(matrix.row, kind="stable")
            return cls(list(design.names), matrix.row[order], matrix.col[order])
        labels = screen.obs["perturbation"].astype(str)
        names = sorted(set(labels) - {CONTROL})
        group = pd.Index(names).get_indexer(labels)
        return cls(names, np.flatnonzero(group >= 0), group[group >= 0])

    def cells_of(self, group: int) -> np.ndarray:
        """Return the positions of a perturbation's pairs."""
        return self._order[slice(*self._edges[group : group + 2])]

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.group, kind="stable")

    @cached_property
    def _edges(self) -> np.ndarray:
        return np.searchsorted(self.group[self._order], np.arange(len(self.names) + 1))


class Evidence:
    """Estimator of the evidence of cells under any conditions, with the same particles for all.

    Parameters
    ----------
    trained
        The model.
    particles
        Q.
    seed
        Seed of the samples.
    """

    def __init__(self, trained: TrainedModel, particles: int, seed: int) -> None:
        self.trained, self.particles, self.seed = trained, particles, seed
        self.draws = GlobalDraws.of(trained.model, particles, seed)

    def __call__(self, cells: Cells) -> np.ndarray:
        """Estimate the predictive bound of each cell, as of :func:`samsvae.inference.iwelbo`."""
        return bounds_of(self.weights(cells))

    def weights(self, cells: Cells, of_control: np.ndarray | None = None) -> np.ndarray:
        """Compute the log importance weights of cells, Q x N.

        Parameters
        ----------
        cells
            The cells.
        of_control
            Their weights without any perturbation, if known: those of particles in which the
            perturbations change nothing.
        """
        shifts, own = self.draws.of_conditions(cells.design, cells.targets, self.particles)
        moved = torch.ones(self.particles, dtype=torch.bool, device=shifts.device)
        weights = np.empty((self.particles, len(cells)))
        # the encoder reads other genes of a cell with a target
        if of_control is not None and not (cells.targets and cells.targets[1].any()):
            weights[:] = of_control
            moved = shifts.flatten(1).any(dim=1)
        chosen = moved.nonzero()[:, 0]
        if own:
            own = own[0], own[1].index_select(0, chosen), own[2]
        given = shifts.index_select(0, chosen), self.seed, own, (chosen, self.particles)
        rows = chosen.cpu().numpy()
        if len(rows):
            for here, found in log_weights_in_batches(self.trained.model, cells, *given):
                weights[np.ix_(rows, here)] = found
        return weights

    def under(
        self,
        cells: Cells,
        conditions: Sequence[Mapping[str, float]],
        contexts: Sequence[str],
        of_control: np.ndarray | None = None,
    ) -> np.ndarray:
        """Estimate the bound of each cell under a condition other than its own."""
        keys = [(label_of(one), context) for one, context in zip(conditions, contexts, strict=True)]
        distinct = dict(zip(keys, conditions, strict=True))
        at = {key: index for index, key in enumerate(distinct)}
        device = cells.design.device
        rows = self.trained.encoding.of_keys({key: dict(one) for key, one in distinct.items()})
        design = torch.from_numpy(rows).to(device)
        condition = torch.tensor([at[key] for key in keys], dtype=torch.long, device=device)
        targets = self.trained.encoding.pairs(design)
        given = replace(cells, design=design, condition=condition, targets=targets)
        return bounds_of(self.weights(given, of_control))

    def does_nothing(self, condition: Mapping[str, float], contexts: Sequence[str]) -> bool:
        """Whether no draw of a condition changes anything, in any of some contexts."""
        rows = self.trained.encoding.of_keys({("", one): dict(condition) for one in contexts})
        design = torch.from_numpy(rows).to(self.trained.device)
        if self.draws.effects is None:
            return not design.any()
        targets = self.trained.encoding.pairs(design)
        shifts, own = self.draws.of_conditions(design, targets, self.particles)
        return not shifts.any() and not any(terms.any() for terms in own[1:])


class ModelledCells:
    """Cells of a screen as a model takes them, block by block.

    Parameters
    ----------
    trained
        The model, whose genes are all in the screen.
    screen
        Canonical screen, whose counts may be in a file.

    Attributes
    ----------
    conditions
        Dose by perturbation of each distinct condition; empty for one with a perturbation that the
        model does not know.
    code
        Index of the condition of each cell.
    is_known
        Whether the model knows all perturbations of each cell.
    contexts
        Context of each cell; empty if effects do not depend on it.
    covariates
        Covariates of each cell; for one that the screen lacks, an unknown level, or the mean over
        training cells.
    """

    def __init__(self, trained: TrainedModel, screen: anndata.AnnData) -> None:
        self.trained, self.screen = trained, screen
        labels, conditions = Design.of_screen(screen).conditions()
        known = np.array([trained.encoding.knows(one) for one in conditions], dtype=bool)
        self.conditions = [one if own else {} for one, own in zip(conditions, known, strict=True)]
        self.code, self.is_known = labels.codes, known[labels.codes]
        levels, scaling = trained.covariates.levels, trained.covariates.scaling
        missing = dict.fromkeys(levels, "") | {name: mean for name, (mean, _) in scaling.items()}
        self.covariates = screen.obs.reindex(columns=list(missing)).assign(
            **{name: value for name, value in missing.items() if name not in screen.obs}
        )
        self.contexts = np.full(screen.n_obs, "", dtype=object)
        if trained.encoding.in_contexts and CONTEXT in screen.obs:
            self.contexts = screen.obs[CONTEXT].astype(str).to_numpy(dtype=object)
        self.gene = pd.Index(screen.var_names).get_indexer(trained.genes)
        self.in_order = np.array_equal(self.gene, np.arange(screen.n_vars))
        # the model's library size is over its own genes, unless it is a column of the source
        self.sums = len(self.gene) < screen.n_vars and "library_size_column" not in screen.uns

    def blocks(self, keep: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, Cells]]:
        """Iterate over cells in order; yields their positions and the cells."""
        for positions, counts in counts_in_blocks(self.screen, keep, LARGEST_MODELLED_BLOCK):
            yield positions, self.cells(positions, counts)

    def together(self, positions: np.ndarray) -> Cells:
        """Move a few cells, at ascending positions, to the model's device in one block."""
        keep = np.zeros(self.screen.n_obs, dtype=bool)
        keep[positions] = True
        blocks = counts_in_blocks(self.screen, keep, LARGEST_MODELLED_BLOCK)
        return self.cells(positions, sparse.vstack([each for _, each in blocks], format="csr"))

    def cells(self, positions: np.ndarray, counts: sparse.csr_matrix) -> Cells:
        """Move some cells, with their counts of all genes of the screen, to the model's device."""
        trained = self.trained
        own = counts if self.in_order else sparse.csr_matrix(counts[:, self.gene])
        size = self.screen.obs["library_size"].to_numpy()[positions]
        if self.sums:
            size = np.asarray(own.sum(axis=1)).ravel()
        keys = pd.MultiIndex.from_arrays([self.code[positions], self.contexts[positions]])
        condition, distinct = pd.factorize(keys, sort=True)
        rows = trained.encoding.rows(
            [self.conditions[code] for code, _ in distinct], [context for _, context in distinct]
        )
        design = torch.from_numpy(rows).to(trained.device)
        obs = self.covariates.iloc[positions]
        given = trained.covariates.on_device(obs, trained.device)
        targets = trained.encoding.pairs(design)
        return Cells.on_device(own, size, design, condition, given, targets)

    def conditions_of(self, positions: np.ndarray) -> list[dict[str, float]]:
        """List the conditions of some cells."""
        return [self.conditions[code] for code in self.code[positions]]


@dataclass
class Responders:
    """Scores of the cells of perturbations, and what follows from them.

    Attributes
    ----------
    groups
        Pairs of a cell and a perturbation.
    score
        Of each pair, in nats; NaN where the model does not know the perturbation.
    null
        Scores of null cells, of each perturbation.
    fraction
        Of responders, of each perturbation, with the ends of its interval, perturbations x 3.
    probability
        Posterior probability that the cell of each pair responds; NaN if the fraction is unknown.
    """

    groups: Groups
    score: np.ndarray
    null: list[NullScores]
    fraction: np.ndarray
    probability: np.ndarray

    @classmethod
    def of(cls, groups: Groups, score: np.ndarray, null: list[NullScores]) -> "Responders":
        """Estimate fractions and probabilities from scores."""
        fraction = np.full((len(groups.names), 3), np.nan)
        probability = np.full(len(score), np.nan)
        for group, of_null in enumerate(null):
            pairs = groups.cells_of(group)
            pairs = pairs[np.isfinite(score[pairs])]
            fraction[group] = fraction_of_responders(score[pairs], of_null)
            probability[pairs] = responder_probability(score[pairs], of_null, fraction[group, 0])
        return cls(groups, score, null, fraction, probability)

    def table(self, screen: anndata.AnnData, min_cells_guide: int) -> pd.DataFrame:
        """Tabulate the responders of perturbations and of their guides.

        Parameters
        ----------
        screen
            Canonical screen.
        min_cells_guide
            Fewest cells of a guide.

        Returns
        -------
        DataFrame
            A row of each perturbation (with an empty guide), then of each guide: ``n_cells`` with
            a score, the fraction of ``responders`` with its 95 % interval ``low`` to ``high``
            (empty where it is unknown), the ``median_score`` of the cells, ``null_median`` and
            ``null_spread`` of null cells, in nats, and ``overlap``, the fraction of responders
            that would score below the null's median.
        """
        rows = [
            self._row(name, "", self.score[self.groups.cells_of(at)], at)
            for at, name in enumerate(self.groups.names)
        ]
        if GUIDE in screen.obs and not has_marginal_effects(screen):
            of_cell, guides = guide_groups(screen, min_cells_guide)
            own = of_cell[self.groups.cell]
            for at, (name, guide) in enumerate(guides[["perturbation", "guide"]].to_numpy()):
                group = self.groups.names.index(name)
                rows.append(self._row(name, guide, self.score[own == at], group))
        return pd.DataFrame(rows).reindex(columns=RESPONDERS)

    def _row(self, name: str, guide: str, scores: np.ndarray, group: int) -> dict[str, object]:
        null, known = self.null[group], scores[np.isfinite(scores)]
        found = fraction_of_responders(known, null) if guide else self.fraction[group]
        return {
            "perturbation": name,
            "guide": guide,
            "n_cells": len(known),
            **dict(zip(("responders", "low", "high"), found, strict=True)),
            "median_score": float(np.median(known)) if len(known) else np.nan,
            "null_median": null.median if len(null.scores) else np.nan,
            "null_spread": null.spread if len(null.scores) else np.nan,
            "overlap": null.overlap if len(null.scores) else np.nan,
        }

    def densities(self) -> pd.DataFrame:
        """Tabulate the densities of scores of the perturbations that are easiest to distinguish.

        Returns
        -------
        DataFrame
            ``perturbation``, ``kind`` (perturbed cells, or null cells), ``lower`` and ``upper``
            ends of a bin, in nats, and ``density``, which has the integral 1 but for the cells
            beyond the outermost bins.
        """
        known = np.flatnonzero(np.isfinite(self.fraction[:, 0]))
        spread = np.array([self.null[at].spread for at in known])
        rows = []
        for group in known[np.argsort(-spread, kind="stable")][:SHOWN_PERTURBATIONS]:
            null, own = self.null[group], self.score[self.groups.cells_of(group)]
            own = own[np.isfinite(own)]
            low, high = np.percentile(np.concatenate([own, null.scores]), [0.5, 99.5])
            edges = np.linspace(low, high, N_BINS + 1)
            kinds = {NULL: (null.scores, null.weights), PERTURBED: (own, None)}
            for kind, (scores, weights) in kinds.items():
                number = np.histogram(scores, edges, weights=weights)[0]
                total = len(scores) if weights is None else 1.0
                rows.append(
                    pd.DataFrame(
                        {
                            "perturbation": self.groups.names[group],
                            "kind": kind,
                            "lower": edges[:-1],
                            "upper": edges[1:],
                            "density": number / total / np.diff(edges),
                        }
                    )
                )
        return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=SCORES)


class ResponderScores:
    """Scorer of the cells of a screen, block by block.

    Parameters
    ----------
    evidence
        Estimator of the evidence of cells.
    modelled
        The cells.
    seed
        Seed of the choice of null cells.
    """

    def __init__(self, evidence: Evidence, modelled: ModelledCells, seed: int) -> None:
        self.evidence, self.modelled = evidence, modelled
        screen = modelled.screen
        self.groups = Groups.of(screen)
        self.score = np.full(len(self.groups.cell), np.nan)
        self.marginal = has_marginal_effects(screen)
        # what each perturbation adds to the condition of a cell
        self.added = [{name: 1.0} if self.marginal else doses(name) for name in self.groups.names]
        self.stratum = strata_of_cells(screen, by_batch=True, depth_bins=DEPTH_BINS)
        knows = modelled.trained.encoding.knows
        contexts = sorted(set(modelled.contexts))
        self.is_modelled = np.array([knows(added) for added in self.added], dtype=bool)
        self.acts = np.array(
            [
                known and not evidence.does_nothing(added, contexts)
                for known, added in zip(self.is_modelled, self.added, strict=True)
            ],
            dtype=bool,
        )

        self.null_cells = self._choose_null_cells(seed)

    def _choose_null_cells(self, seed: int) -> np.ndarray:
        """Choose control cells at random, or any cells where effects are marginal."""
        screen, fewest, most = self.modelled.screen, *NULL_CELLS
        allowed = self.modelled.is_known.copy()
        if not self.marginal:
            allowed &= (screen.obs["perturbation"] == CONTROL).to_numpy()
        chosen = np.flatnonzero(allowed)
        number = int(np.clip(MOST_NULL_SCORES // max(1, self.acts.sum()), fewest, most))
        if len(chosen) > number:
            rng = np.random.default_rng(seed)
            chosen = np.sort(rng.choice(chosen, number, replace=False))
        return chosen

    def add(self, positions: np.ndarray, cells: Cells) -> np.ndarray:
        """Score the pairs of the cells of a block; return the bounds of the cells, in nats."""
        bound = self.evidence(cells)
        first, last = np.searchsorted(self.groups.cell, [positions[0], positions[-1] + 1])
        pairs = np.arange(first, last)
        group = self.groups.group[pairs]
        row = np.searchsorted(positions, self.groups.cell[pairs])
        # a cell without counts of the model's genes says nothing
        counted = (cells.counts != 0).any(dim=1).cpu().numpy()
        known = self.modelled.is_known[self.groups.cell[pairs]] & counted[row]
        self.score[pairs[known]] = 0.0
        scored = known & self.acts[group]
        if scored.any():
            group, row = group[scored], row[scored]
            conditions = self.modelled.conditions_of(positions[row])
            without = [
                {name: dose for name, dose in one.items() if name not in self.added[at]}
                for one, at in zip(conditions, group, strict=True)
            ]
            contexts = list(self.modelled.contexts[positions[row]])
            other = self.evidence.under(cells.select(row), without, contexts)
            self.score[pairs[scored]] = bound[row] - other
        bound[~(self.modelled.is_known[positions] & counted)] = np.nan
        return bound

    def finish(self) -> Responders:
        """Score null cells, and estimate fractions and probabilities."""
        positions, none = self.null_cells, NullScores(np.empty(0), np.empty(0))
        if not len(positions):
            return Responders.of(self.groups, self.score, [none] * len(self.added))
        cells = self.modelled.together(positions)
        weights = self.evidence.weights(cells)
        conditions = self.modelled.conditions_of(positions)
        contexts = self.modelled.contexts[positions]
        null = []
        progress = Progress("null cells of perturbation", len(self.added), " perturbations")
        for group, added in enumerate(self.added):
            progress.update(1)
            if not self.is_modelled[group]:
                null.append(none)
                continue
            lacks = np.array([added.keys().isdisjoint(one) for one in conditions], dtype=bool)
            rows = np.flatnonzero(lacks)
            scores = np.zeros(len(rows))
            if self.acts[group] and len(rows):
                given = [conditions[row] | added for row in rows]
                own = weights[:, rows]
                of_control = None if self.marginal else own
                some = cells.select(rows), given, list(contexts[rows]), of_control
                scores = self.evidence.under(*some) - bounds_of(own)
            null.append(self._weighted(group, scores, positions[rows]))
        return Responders.of(self.groups, self.score, null)

    def _weighted(self, group: int, scores: np.ndarray, positions: np.ndarray) -> NullScores:
        """Weight null cells so that their batches and depths are those of the perturbed cells.

        Without any of these batches and depths there are none.
        """
        n_strata = int(self.stratum.max(initial=0)) + 1
        cells = self.groups.cell[self.groups.cells_of(group)]
        wanted = np.bincount(self.stratum[cells], minlength=n_strata)
        found = np.bincount(self.stratum[positions], minlength=n_strata)
        weights = (wanted / np.maximum(found, 1))[self.stratum[positions]]
        used = weights > 0
        return NullScores(scores[used], weights[used] / weights[used].sum())


def responder_effects(
    screen: anndata.AnnData, responders: Responders
) -> tuple[np.ndarray, np.ndarray]:
    """Compute observed effects among all cells of perturbations, and among responders.

    Effects are within batches and contexts, where the screen names them: each cell minus the mean
    of the control cells of its batch. Among responders, cells are weighted by the posterior
    probability. Since this depends on the counts of the cell, effects among responders of a weak
    perturbation are too large.

    Parameters
    ----------
    screen
        Canonical screen with control cells, whose effects are those of conditions.
    responders
        Of this screen.

    Returns
    -------
    all_cells, among_responders : ndarray
        Perturbations x genes, log2(CP10k + 1); NaN for a perturbation without cells in a batch with
        control cells, and among responders if their fraction is unknown or 0.
    """
    groups = responders.groups
    stratum = strata_of_cells(screen, by_batch=True)
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    n_groups, n_strata = len(groups.names), int(stratum.max(initial=0)) + 1
    n_controls = np.bincount(stratum[is_control], minlength=n_strata)
    group = np.full(screen.n_obs, -1)
    group[groups.cell] = groups.group
    group[n_controls[stratum] == 0] = -1
    probability = np.zeros(screen.n_obs)
    probability[groups.cell] = np.nan_to_num(responders.probability)
    size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    # sums of expression, and of weights in each stratum
    total = np.zeros((2, n_groups, screen.n_vars))
    controls = np.zeros((n_strata, screen.n_vars))
    mass = np.zeros((2, n_groups, n_strata))
    for positions, counts in counts_in_blocks(screen, None, LARGEST_BLOCK):
        expression = log_cp10k(counts, size[positions])
        used = group[positions] >= 0
        own, at = positions[used], np.flatnonzero(used)
        for kind, weights in enumerate((np.ones(len(own)), probability[own])):
            shape = n_groups, len(positions)
            sums = sparse.csr_matrix((weights, (group[own], at)), shape) @ expression
            total[kind] += sums.toarray()
            np.add.at(mass[kind], (group[own], stratum[own]), weights)
        inside = np.flatnonzero(is_control[positions])
        shape = n_strata, len(positions)
        rows = (np.ones(len(inside)), (stratum[positions[inside]], inside))
        controls += (sparse.csr_matrix(rows, shape) @ expression).toarray()
    controls /= np.maximum(n_controls, 1)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        of_cells = mass.sum(axis=2, keepdims=True)
        effects = total / of_cells - (mass / of_cells) @ controls
    return effects[0], effects[1]
