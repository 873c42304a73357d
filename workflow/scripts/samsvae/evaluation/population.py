"""Predicted cells against held-out cells of a split: vcc2026 scores and distances of populations.

A generative model predicts cells, not only their mean. Sampled cells of a perturbation and its
held-out cells are compared by the metrics of :mod:`samsvae.evaluation.vcc2026`, and by distances of
their distributions in principal components. Each score stands between two anchors: a replicate
(half of the held-out cells against the other half), and the mean response or control cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from samsvae.evaluation.baselines import mean_effect
from samsvae.evaluation.expression import LARGEST_BLOCK, log_cp10k
from samsvae.evaluation.samples import ControlCells, compared_cells, halves, sample_cells
from samsvae.evaluation.scores import (
    DISCREPANCY,
    DISTANCES,
    ENERGY,
    POPULATION_COLUMNS,
    VARIANCE,
)
from samsvae.evaluation.vcc2026 import (
    SCORES,
    CellStatistics,
    cell_statistics,
    target_columns,
    vcc_scores,
)
from samsvae.inference.checkpoint import TrainedModel
from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import counts_in_blocks, nonzero_counts
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TRAIN

N_COMPONENTS = 20
N_REPLICATES = 5
CELLS_OF_COMPONENTS = 10_000
CELLS_OF_BANDWIDTH = 1000
FEWEST_CELLS = 4  # of a perturbation that is compared; two in each half
MOST_PERTURBATIONS = 2000  # that are compared, since cells of all are in memory
MOST_COUNTS = 2**26  # non-zero ones of their held-out cells, some 70 bytes each

VCC_COLUMNS = [
    "split", "model", "seed", "metric", "value", "baseline", "replicate", "replicate_sd", "scaled",
]  # fmt: skip


def energy_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Estimate the energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| without bias.

    Parameters
    ----------
    first, second
        Cells x components, at least two cells each. Pairs are of different cells, so that the
        distance of two samples of one distribution is 0 on average and may be negative.

    References
    ----------
    Székely and Rizzo 2013.
    """
    return 2 * float(cdist(first, second).mean()) - _within(first) - _within(second)


def _within(cells: np.ndarray) -> float:
    number = len(cells)
    return float(cdist(cells, cells).sum()) / (number * (number - 1))


def squared_discrepancy(first: np.ndarray, second: np.ndarray, bandwidth: float) -> float:
    """Estimate the squared maximum mean discrepancy without bias.

    Parameters
    ----------
    first, second
        Cells x components, at least two cells each.
    bandwidth
        s of the kernel exp(-|x - y|^2 / (2 s^2)), as of :func:`median_distance`.

    References
    ----------
    Gretton et al. 2012.
    """

    def kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-cdist(one, other, "sqeuclidean") / (2 * bandwidth**2)))

    def within(cells: np.ndarray) -> float:
        number = len(cells)
        return float((kernel(cells, cells).sum() - number) / (number * (number - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def median_distance(cells: np.ndarray, seed: int = 0) -> float:
    """Compute the median distance of pairs of cells, of at most 1,000 random ones."""
    chosen = np.random.default_rng(seed).permutation(len(cells))[:CELLS_OF_BANDWIDTH]
    distances = cdist(cells[chosen], cells[chosen])
    return float(np.median(distances[np.triu_indices(len(chosen), 1)]))


def random_part(rows: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Choose at most a number of rows, since files may be sorted by batch."""
    return rows if len(rows) <= most else np.random.default_rng(seed).permutation(rows)[:most]


def total_variance(cells: np.ndarray) -> float:
    """Sum the variances of the components."""
    return float(cells.var(axis=0, ddof=1).sum())


@dataclass(frozen=True)
class CellSet:
    """Cells with raw counts.

    Attributes
    ----------
    counts
        Cells x genes.
    labels
        Perturbation of each cell.
    """

    counts: sparse.csr_matrix
    labels: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "CellSet":
        """Select cells by a mask or by positions."""
        return CellSet(self.counts[chosen], self.labels[chosen])

    def __add__(self, other: "CellSet") -> "CellSet":
        """Join two sets of cells."""
        counts = sparse.vstack([self.counts, other.counts], format="csr")
        return CellSet(counts, np.concatenate([self.labels, other.labels]))

    def statistics(self, names: Sequence[str]) -> CellStatistics:
        """Summarise the cells by perturbation."""
        return cell_statistics(self.counts, self.labels, names)


class HeldOutCells:
    """Held-out cells of a split, and the anchors of scores against them.

    Of more than 2,000 perturbations, those with most held-out cells are compared (of equal numbers,
    the first by name).

    Parameters
    ----------
    screen
        Canonical screen with counts.
    parts
        Split of each cell.
    most_cells
        Largest number of predicted cells of a perturbation; there are as many as are held out.
    min_controls
        As of the baseline :func:`samsvae.evaluation.baselines.mean_effect`.

    Raises
    ------
    InputError
        If fewer than four control cells are held out, or no perturbation has as many, or cells
        cannot be compared, see :func:`samsvae.evaluation.samples.compared_cells`.
    """

    def __init__(
        self,
        screen: anndata.AnnData,
        parts: pd.Series,
        most_cells: int,
        min_controls: int | None = None,
    ) -> None:
        self.screen, self.parts, self.most_cells = screen, parts, most_cells
        self.min_controls = min_controls
        compared = compared_cells(screen, parts)
        labels = screen.obs["perturbation"].astype(str)
        held_out = labels[compared].value_counts()
        kept = sorted(set(held_out.index[held_out >= FEWEST_CELLS]) - {CONTROL})
        if not kept or held_out[CONTROL] < FEWEST_CELLS:
            raise InputError(
                f"Predicted cells are compared with at least {FEWEST_CELLS} held-out cells of a "
                f"perturbation and of {CONTROL!r}; the split has fewer."
            )
        kept = sorted(kept, key=lambda name: -held_out[name])[:MOST_PERTURBATIONS]
        counts = pd.Series(nonzero_counts(screen)[compared]).groupby(labels[compared].array).sum()
        number = int(np.sum(counts[kept].cumsum() <= MOST_COUNTS))
        self.names = kept = sorted(kept[: max(number, 1)])
        self.compared = compared & labels.isin({*kept, CONTROL}).to_numpy()
        self.cells = self.cells_of(self.compared)
        self.numbers = np.minimum(held_out[kept].to_numpy(), most_cells)
        self.targets = target_columns(screen, kept)
        self.controls = self.cells[self.cells.labels == CONTROL]
        self.statistics = self.cells.statistics(kept)

    def cells_of(self, chosen: np.ndarray) -> CellSet:
        """Select measured cells of the screen."""
        labels = self.screen.obs["perturbation"].astype(str).to_numpy()[chosen]
        blocks = [own for _, own in counts_in_blocks(self.screen, chosen, LARGEST_BLOCK)]
        empty = sparse.csr_matrix((0, self.screen.n_vars), dtype=np.int32)
        return CellSet(sparse.csr_matrix(sparse.vstack(blocks or [empty], format="csr")), labels)

    # Predicted cells.

    def sampled(self, trained: TrainedModel, seed: int) -> CellSet:
        """Sample cells of a model at the library sizes of the held-out cells."""
        perturbed = self.compared & (self.screen.obs["perturbation"] != CONTROL).to_numpy()
        sizes = self.screen.obs["library_size"].to_numpy()[perturbed]
        most = int(self.numbers.max())
        cells = sample_cells(trained, self.names, most, sizes, seed)
        number = dict(zip(self.names, self.numbers, strict=True))
        labels = cells.obs["perturbation"].astype(str).to_numpy()
        wanted = (cells.obs["draw"].to_numpy() < [number[label] for label in labels]).nonzero()[0]
        return CellSet(sparse.csr_matrix(cells.X[wanted]), labels[wanted])

    @cached_property
    def control_cells(self) -> ControlCells:
        """Training control cells, from which the cells of baselines are made."""
        is_control = (self.screen.obs["perturbation"] == CONTROL).to_numpy()
        trained = is_control & (self.parts == TRAIN).to_numpy()
        return ControlCells.of(self.cells_of(trained if trained.any() else is_control).counts)

    def with_effects(self, effects: np.ndarray, seed: int) -> CellSet:
        """Make cells with given mean effects.

        Effects are perturbations x genes in log2(CP10k + 1); NaN is no effect.
        """
        counts = self.control_cells.perturbed(np.nan_to_num(effects), self.numbers, seed)
        return CellSet(counts, np.repeat(np.array(self.names, dtype=object), self.numbers))

    @cached_property
    def mean_response(self) -> CellSet:
        """Cells that have the mean effect of training perturbations, the vcc2026 baseline."""
        train = (self.parts == TRAIN).to_numpy()
        return self.with_effects(mean_effect(self.screen, train, self.names, self.min_controls), 0)

    # Scores by the rules vcc2026.

    def vcc_scores_of(self, predicted: CellSet) -> dict[str, float]:
        """Score predicted cells, compared with the held-out control cells."""
        perturbed = predicted[predicted.labels != CONTROL]
        statistics = (perturbed + self.controls).statistics(self.names)
        return vcc_scores(statistics, self.statistics, self.targets)

    def vcc_scores_of_half(self, seed: int) -> dict[str, float]:
        """Score half of the held-out cells against the other, each with its own control cells."""
        chosen = halves(self.screen, self.parts, self.compared, seed)
        first, second = (self.cells[half[self.compared]].statistics(self.names) for half in chosen)
        return vcc_scores(first, second, self.targets, gate=self.statistics)

    @cached_property
    def vcc_anchors(self) -> dict[str, tuple[float, float, float]]:
        """Baseline and replicate of each metric: mean response, and mean of five half-splits.

        The third value is the standard deviation over the half-splits.

        A replicate is at most perfect. The profile error of halves is an unbiased estimate of 0
        and is often negative, so that without this limit a perfect prediction would score below 1.
        """
        baseline = self.vcc_scores_of(self.mean_response)
        replicates = [self.vcc_scores_of_half(seed) for seed in range(N_REPLICATES)]
        found = {name: [each[name] for each in replicates] for name in SCORES}
        return {
            name: (
                baseline[name],
                float(np.clip(np.mean(found[name]), *SCORES[name].limits)),
                float(np.std(found[name], ddof=1)),
            )
            for name in SCORES
        }

    def vcc_table(self, values: Mapping[str, float], run: Mapping[str, Any]) -> pd.DataFrame:
        """Tabulate the scores of a run with their anchors.

        Returns
        -------
        DataFrame
            :data:`VCC_COLUMNS`. ``scaled`` is 0 for the baseline and 1 for the replicate, and
            empty where the replicate is not better than the baseline: such a metric cannot rank
            models on this screen.
        """
        rows = []
        for metric, value in values.items():
            baseline, replicate, spread = self.vcc_anchors[metric]
            span = replicate - baseline
            better = span > 0 if SCORES[metric].direction == "higher" else span < 0
            scaled = (value - baseline) / span if better else np.nan
            rows.append((metric, value, baseline, replicate, spread, scaled))
        table = pd.DataFrame(rows, columns=VCC_COLUMNS[3:]).assign(**run)
        return table[VCC_COLUMNS]

    # Distances of populations.

    @cached_property
    def components(self) -> PCA:
        """Principal components of log2(CP10k + 1) of training cells, at most 10,000 of them.

        Components of the held-out cells themselves would also follow their noise, in which other
        cells, and be they of the same distribution, vary less.
        """
        trained = np.flatnonzero((self.parts == TRAIN).to_numpy())
        chosen = np.random.default_rng(0).permutation(trained)[:CELLS_OF_COMPONENTS]
        cells = self.cells_of(np.isin(np.arange(self.screen.n_obs), chosen))
        number = min(N_COMPONENTS, *(size - 1 for size in cells.counts.shape))
        return PCA(number, svd_solver="arpack", random_state=0).fit(_expression(cells))

    @cached_property
    def held_out_by_perturbation(self) -> dict[str, np.ndarray]:
        """Components of the held-out cells of each perturbation and of control cells."""
        return self.by_perturbation(self.cells)

    @cached_property
    def bandwidth(self) -> float:
        """Median distance of the held-out cells, the bandwidth of the kernel."""
        return median_distance(np.concatenate(list(self.held_out_by_perturbation.values())))

    def by_perturbation(self, cells: CellSet) -> dict[str, np.ndarray]:
        """Project cells on the components, at most `most_cells` random ones of each label."""
        scores = self.components.transform(_expression(cells))
        labels = pd.Series(cells.labels)
        return {
            str(name): scores[np.sort(random_part(rows, self.most_cells))]
            for name, rows in labels.groupby(labels).indices.items()
        }

    def distances_of(self, predicted: CellSet) -> dict[str, float]:
        """Compare the distributions of predicted and held-out cells, means over perturbations."""
        return self._distances(self.by_perturbation(predicted), self.held_out_by_perturbation)

    def _distances(
        self, first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        pairs = [(first[name], second[name]) for name in self.names]
        return {
            ENERGY: float(np.mean([energy_distance(*pair) for pair in pairs])),
            DISCREPANCY: float(
                np.mean([squared_discrepancy(*pair, self.bandwidth) for pair in pairs])
            ),
            VARIANCE: sum(total_variance(cells) for cells, _ in pairs)
            / sum(total_variance(cells) for _, cells in pairs),
        }

    def distances_of_half(self, seed: int) -> dict[str, float]:
        """Compare half of the held-out cells with the other half."""
        chosen = halves(self.screen, self.parts, self.compared, seed)
        first, second = (self.by_perturbation(self.cells_of(half)) for half in chosen)
        return self._distances(first, second)

    @cached_property
    def distance_anchors(self) -> dict[str, tuple[float, float]]:
        """Floor and ceiling of each distance: control cells, and mean of five half-splits."""
        controls = dict.fromkeys(self.names, self.held_out_by_perturbation[CONTROL])
        floor = self._distances(controls, self.held_out_by_perturbation)
        replicates = [self.distances_of_half(seed) for seed in range(N_REPLICATES)]
        return {
            name: (floor[name], float(np.mean([each[name] for each in replicates])))
            for name in DISTANCES
        }

    def population_table(self, values: Mapping[str, float], run: Mapping[str, Any]) -> pd.DataFrame:
        """Tabulate the distances of a run with those of control cells and of a replicate."""
        rows = [(name, value, *self.distance_anchors[name]) for name, value in values.items()]
        table = pd.DataFrame(rows, columns=POPULATION_COLUMNS[3:]).assign(**run)
        return table[POPULATION_COLUMNS]


def _expression(cells: CellSet) -> sparse.csr_matrix:
    total = np.asarray(cells.counts.sum(axis=1), dtype=np.float64).ravel()
    return log_cp10k(cells.counts, np.maximum(total, 1))
