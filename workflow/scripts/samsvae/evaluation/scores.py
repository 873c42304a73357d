"""Tidy tables of the scores of predicted effects and of the bounds of runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd

from samsvae.evaluation.compared import comparisons, target_genes
from samsvae.evaluation.differential_expression import significant_effects, slope
from samsvae.evaluation.effects import CONTEXTS, effects_in_context, truth_of
from samsvae.evaluation.metrics import (
    DE,
    HELD_OUT,
    METRICS,
    OVER_SEEDS,
    PERTURBATION,
    Metric,
    Score,
)


def scopes(observed: anndata.AnnData) -> dict[str, np.ndarray]:
    """Group perturbations by the parts of the split that have cells of them.

    Returns
    -------
    dict of ndarray of bool
        ``all``; and ``train``, ``val``, ``test``: perturbations with such cells. On a random split
        the three are equal; with unseen combinations ``test`` are the held-out pairs.
    """
    masks = {part: observed.obs[f"n_{part}"].to_numpy() > 0 for part in ("train", "val", "test")}
    return {"all": np.ones(observed.n_obs, dtype=bool), **masks}


BY_CONTEXT = ("pearson", "rmse")
MOST_MISSED = 5  # genes that are named
BEYOND_NOISE = 3.0  # standard errors


def missed_effects(observed: anndata.AnnData, predicted: anndata.AnnData) -> pd.DataFrame:
    """Tabulate what predictions leave out of the observed effects of held-out cells.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects of the same perturbations and genes, in the same order.

    Returns
    -------
    DataFrame
        One row per perturbation: ``n_held_out`` cells; ``effect_size``, root mean square over genes
        of the observed effect without its noise, log2(CP10k + 1); ``explained``, the fraction of
        the effect's variance that the prediction explains, noise taken off both, NaN where the
        effect is not larger than noise; ``n_missed`` genes whose error is beyond three standard
        errors; and ``missed_genes``, those of largest error with their observed and predicted
        effects. No rows for predictions from held-out cells.
    """
    if truth_of(observed, predicted) is not observed:
        return pd.DataFrame(columns=["perturbation"])
    effect, error = (
        np.asarray(observed.layers[name], dtype=np.float64)
        for name in ("ate_held_out", "standard_error_held_out")
    )
    guess = np.asarray(predicted.X, dtype=np.float64)
    noise = np.square(error)
    size = np.sum(np.square(effect) - noise, axis=1)
    is_effect = size > BEYOND_NOISE * np.sqrt(2 * np.sum(np.square(noise), axis=1))
    remaining = np.sum(np.square(effect - guess) - noise, axis=1)
    explained = np.full(len(size), np.nan)
    np.divide(remaining, size, out=explained, where=is_effect)
    # without a count in any held-out cell a gene has no error, which does not mean that it is exact
    is_missed = (error > 0) & (np.abs(effect - guess) > BEYOND_NOISE * error)
    names = observed.var_names.to_numpy(dtype=object)

    def named(row: int) -> str:
        missed = np.flatnonzero(is_missed[row])
        distance = np.abs(effect[row, missed] - guess[row, missed])
        largest = missed[np.argsort(-distance, kind="stable")]
        return ", ".join(
            f"{names[gene]} {effect[row, gene]:+.2f} ({guess[row, gene]:+.2f})"
            for gene in largest[:MOST_MISSED]
        )

    return pd.DataFrame(
        {
            "perturbation": observed.obs_names,
            "n_held_out": observed.obs["n_held_out"].to_numpy(),
            "effect_size": np.sqrt(np.clip(size, 0, None) / effect.shape[1]),
            "explained": 1 - explained,
            "n_missed": is_missed.sum(axis=1),
            "missed_genes": [named(row) for row in range(len(size))],
        }
    )


# columns of the scores by context
CONTEXT_SCORES = [
    PERTURBATION, "context", "trained", "n_held_out", "effect_size", "explained",
    f"pearson{HELD_OUT}", f"rmse{HELD_OUT}",
]  # fmt: skip


def context_scores(observed: anndata.AnnData, predicted: anndata.AnnData) -> pd.DataFrame:
    """Score the predicted effects of each perturbation in each context.

    Parameters
    ----------
    observed
        Observed effects.
    predicted
        Predicted effects of the same perturbations and genes, in any order.

    Returns
    -------
    DataFrame
        One row per perturbation and context with an effect among held-out cells: whether it was
        ``trained`` in this context, ``effect_size`` and ``explained`` as of :func:`missed_effects`,
        and ``pearson_held_out`` and ``rmse_held_out`` over genes. No rows without contexts, or for
        predictions from held-out cells.
    """
    predicted = predicted[observed.obs_names, observed.var_names]
    parts = [pd.DataFrame(columns=CONTEXT_SCORES)]
    if truth_of(observed, predicted) is observed:
        for context in observed.uns.get(CONTEXTS, []):
            own = effects_in_context(observed, context)
            guess = effects_in_context(predicted, context)
            truth = np.asarray(own.layers["ate_held_out"], dtype=np.float64)
            known = np.isfinite(truth).all(axis=1)
            table = missed_effects(own, guess)
            pair = truth, np.asarray(guess.X, dtype=np.float64)
            scored = {f"{name}{HELD_OUT}": METRICS[name].function(*pair) for name in BY_CONTEXT}
            trained = own.obs["n_train"].to_numpy() > 0
            table = table.assign(context=context, trained=trained, **scored)
            parts.append(table.loc[known, CONTEXT_SCORES])
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


@dataclass(frozen=True)
class EffectScores:
    """Scores of predicted effects.

    Attributes
    ----------
    by_perturbation
        One row per perturbation, one column per metric.
    tested
        Boolean, the perturbations with test cells.
    differential_expression
        One row per perturbation: n_held_out (tested cells), n_de (differentially expressed genes),
        the metrics of :func:`samsvae.evaluation.metrics.de_metrics`, and the slope of
        :func:`samsvae.evaluation.differential_expression.slope`, which is best near 1.
    summary
        Columns scope, metric, value. A metric's plain name is over all entries together;
        ``median_`` or ``mean_`` is its average over perturbations, ``spread_`` their
        interquartile range.
    """

    by_perturbation: pd.DataFrame
    tested: np.ndarray
    differential_expression: pd.DataFrame
    summary: pd.DataFrame

    def tidy(self) -> pd.DataFrame:
        """Stack the summary and the scores of perturbations.

        Returns
        -------
        DataFrame
            Columns scope, perturbation, tested, metric and value. Scores of single perturbations
            have the scope ``perturbation``; the others have no perturbation.
        """
        table = self.by_perturbation.assign(tested=self.tested).reset_index()
        single = table.melt([PERTURBATION, "tested"], var_name="metric")
        summary = self.summary.assign(**dict.fromkeys([PERTURBATION, "tested"]))
        columns = ["scope", PERTURBATION, "tested", "metric", "value"]
        parts = (summary, single.assign(scope=PERTURBATION))
        tables = [part[columns].astype({"tested": "boolean"}) for part in parts]
        return pd.concat(tables, ignore_index=True)


def effect_scores(
    observed: anndata.AnnData, predicted: anndata.AnnData, n_top: int, fdr: float
) -> EffectScores:
    """Compute every metric, by perturbation and on every scope.

    Parameters
    ----------
    observed, predicted, n_top, fdr
        As of :func:`comparisons`; perturbations and genes may be in any order.
    """
    predicted = predicted[observed.obs_names, observed.var_names]
    compared = list(comparisons(observed, predicted, n_top, fdr))
    values = {name: v for one in compared for name, v in one.by_perturbation().items()}
    metrics = {name: metric for one in compared for name, metric in one.metrics.items()}
    summaries: dict[bytes, dict[str, float]] = {}  # scopes with the same perturbations are equal
    summary = []
    for scope, mask in scopes(observed).items():
        if not mask.any():
            continue
        if mask.tobytes() not in summaries:
            found = [one.flattened(mask) for one in compared]
            found += [averages(name, metrics[name], values[name][mask]) for name in metrics]
            summaries[mask.tobytes()] = {n: v for part in found for n, v in part.items()}
        own = summaries[mask.tobytes()]
        summary += [{"scope": scope, "metric": name, "value": own[name]} for name in own]
    scores = pd.DataFrame(values, index=pd.Index(observed.obs_names, name="perturbation"))
    return EffectScores(
        scores,
        scopes(observed)["test"],
        _de_table(truth_of(observed, predicted), predicted, scores, fdr),
        pd.DataFrame(summary, columns=["scope", "metric", "value"]),
    )


def averages(name: str, metric: Metric, values: np.ndarray) -> dict[str, float]:
    """Compute average and interquartile range over perturbations; NaN without any value."""
    defined = values[~np.isnan(values)]
    names = (f"{metric.average}_{name}", f"spread_{name}")
    if not len(defined):
        return dict.fromkeys(names, float("nan"))
    middle = np.median(defined) if metric.average == "median" else defined.mean()
    low, high = np.quantile(defined, [0.25, 0.75])
    return dict(zip(names, (float(middle), float(high - low)), strict=True))


def _de_table(
    truth: anndata.AnnData, predicted: anndata.AnnData, scores: pd.DataFrame, fdr: float
) -> pd.DataFrame:
    columns = [name for name in scores if name.startswith(DE)]
    table = scores[columns].rename(columns=lambda name: name.removeprefix(DE))
    table.insert(0, "n_held_out", truth.obs["n_held_out"].to_numpy())
    table.insert(1, "n_de", np.sum(np.asarray(truth.layers["fdr"]) < fdr, axis=1))
    guess = np.asarray(predicted.X, dtype=np.float64)
    significant = significant_effects(truth, fdr)
    significant[target_genes(truth)] = np.nan  # as in the metrics
    table["slope"] = slope(significant, guess)
    return table.reset_index()


def with_quartiles(table: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of perturbations over the runs on a split, and add their quartiles.

    Parameters
    ----------
    table
        Tables of :meth:`EffectScores.tidy` of all runs on a split, with model and seed.

    Returns
    -------
    DataFrame
        With the columns of :data:`OVER_SEEDS`, NaN without a perturbation: mean_over_seeds of each
        perturbation, and lower_quartile, median and upper_quartile of these means over the
        perturbations with test cells, or over all where none has any.
    """
    score = ["metric", "model"]
    single = table[table["scope"] == PERTURBATION]
    one = single.groupby([*score, PERTURBATION], observed=True)["value"]
    single = single.assign(mean_over_seeds=one.transform("mean"))
    shown = single[single["tested"]] if single["tested"].any() else single
    means = shown.drop_duplicates([*score, PERTURBATION]).groupby(score, observed=True)
    levels = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    quartiles = {name: means["mean_over_seeds"].quantile(level) for name, level in levels.items()}
    single = single.join(pd.DataFrame(quartiles), on=score)
    return table.join(single[OVER_SEEDS])


def summarise_iwelbo(runs: Iterable[tuple[Mapping[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """Average the bounds of cells by run.

    Parameters
    ----------
    runs
        Each with split, model and seed, and its table of cells: cell, split and iwelbo (nats).
        Read one by one, so that memory does not grow with their number.

    Returns
    -------
    DataFrame
        One row per run and scope (``val`` or ``test`` cells): n_cells, iwelbo with its standard
        error over cells, and the difference to the first model of the same split and seed, paired
        by cell, with its standard error, which is far smaller than that of a bound.
    """
    reference: dict[tuple[Any, Any], pd.Series] = {}
    rows = []
    for run, cells in runs:
        bound = cells.set_index("cell")["iwelbo"]
        first = reference.setdefault((run["split"], run["seed"]), bound)
        difference = bound - first.reindex(bound.index)
        for scope, members in cells.groupby("split", observed=True)["cell"]:
            rows.append(
                {
                    **run,
                    "scope": scope,
                    "n_cells": len(members),
                    **_mean_and_error(bound[members], "iwelbo"),
                    **_mean_and_error(difference[members], "difference"),
                }
            )
    return pd.DataFrame(rows)


def with_monte_carlo_errors(
    table: pd.DataFrame, runs: Iterable[tuple[Mapping[str, Any], pd.DataFrame]]
) -> pd.DataFrame:
    """Add the Monte-Carlo errors of mean bounds to their table.

    Parameters
    ----------
    table
        As of :func:`summarise_iwelbo`.
    runs
        Each with split, model and seed, and its bounds by scope and number of particles.

    Returns
    -------
    DataFrame
        With the columns particles, their largest number, and iwelbo_monte_carlo_error, nats per
        cell, the standard error of the mean bound of these cells over draws.
    """
    errors = pd.concat(
        bounds.loc[bounds.groupby("scope")["particles"].idxmax()].assign(**run)
        for run, bounds in runs
    ).rename(columns={"standard_error": "iwelbo_monte_carlo_error"})
    keys = ["split", "model", "seed", "scope"]
    added = errors[[*keys, "particles", "iwelbo_monte_carlo_error"]]
    return table.merge(added, on=keys, how="left", validate="one_to_one")


NORMAL = 1.96  # standard errors on either side of a mean, a 95 % confidence interval


def with_intervals(table: pd.DataFrame) -> pd.DataFrame:
    """Add the confidence intervals of differences, and the mean bounds of models.

    Parameters
    ----------
    table
        As of :func:`summarise_iwelbo`.

    Returns
    -------
    DataFrame
        With difference_low and difference_high, the 95 % confidence interval over cells, and
        mean_iwelbo, the mean of the bounds of a model's runs on a scope; nats per cell.
    """
    half = NORMAL * table["difference_standard_error"]
    return table.assign(
        difference_low=table["difference"] - half,
        difference_high=table["difference"] + half,
        mean_iwelbo=table.groupby(["model", "scope"])["iwelbo"].transform("mean"),
    )


def with_differences(by_particles: pd.DataFrame) -> pd.DataFrame:
    """Pair bounds at each number of particles with those of the first model; average over runs.

    Parameters
    ----------
    by_particles
        The table iwelbo_by_particles.tsv: split, model, seed, scope, particles, iwelbo and its
        Monte-Carlo standard_error, nats per cell. The first row is of the first model.

    Returns
    -------
    DataFrame
        With the difference to the first model on the same split and from the same seed, and
        difference_standard_error; and of both bound and difference the mean over the runs of a
        model (mean_iwelbo, mean_difference), with the 95 % confidence interval of its
        Monte-Carlo error (``_low``, ``_high``).
    """
    run = ["split", "seed", "scope", "particles"]
    is_first = by_particles["model"] == by_particles["model"].iloc[0]
    reference = by_particles[is_first].set_index(run)[["iwelbo", "standard_error"]]
    first = by_particles[run].join(reference, on=run)
    error = np.hypot(by_particles["standard_error"], first["standard_error"])
    table = by_particles.assign(
        difference=by_particles["iwelbo"] - first["iwelbo"],
        difference_standard_error=error * ~is_first,
    )
    runs = table.groupby(["model", "scope", "particles"])
    for name, error_name in (
        ("iwelbo", "standard_error"),
        ("difference", "difference_standard_error"),
    ):
        squares = table.assign(square=table[error_name] ** 2)
        total = squares.groupby(["model", "scope", "particles"])["square"].transform("sum")
        half = NORMAL * np.sqrt(total) / runs[name].transform("size")
        mean = runs[name].transform("mean")
        columns = {"": mean, "_low": mean - half, "_high": mean + half}
        table = table.assign(**{f"mean_{name}{end}": values for end, values in columns.items()})
    return table


def _mean_and_error(values: pd.Series, name: str) -> dict[str, float]:
    error = values.std() / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return {name: float(values.mean()), f"{name}_standard_error": float(error)}


LEVEL = 0.9  # of the intervals that are written, and at which they are calibrated
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TESTED, SIGNIFICANT = "tested", "significant"
COVERAGES = ("coverage", "calibrated_coverage", "noise_coverage")


def covered(pit: np.ndarray, level: float) -> np.ndarray:
    """Whether observed effects lie inside the central interval of a level."""
    inside: np.ndarray = np.abs(pit - 0.5) <= level / 2
    return inside


def coverage_table(
    transforms: dict[str, np.ndarray], significant: np.ndarray, scale_factor: float
) -> pd.DataFrame:
    """Tabulate the fraction of effects inside intervals, by level and set of genes.

    Parameters
    ----------
    transforms
        Probability integral transforms by column, perturbations x genes; NaN where unknown.
    significant
        Boolean, perturbations x genes.
    scale_factor
        That of the calibrated intervals.

    Returns
    -------
    DataFrame
        Row per set of genes (``tested``, or ``significant`` among these) and level: number n of
        effects, fractions :data:`COVERAGES` and ``scale_factor``; no rows for a set without
        observed effects.
    """
    known = np.isfinite(transforms["coverage"])
    columns = ["genes", "level", "n", *COVERAGES, "scale_factor"]
    rows = []
    for genes, chosen in ((TESTED, known), (SIGNIFICANT, known & significant)):
        if not chosen.any():
            continue
        for level in LEVELS:
            row = {"genes": genes, "level": level, "n": int(chosen.sum())}
            for name, transform in transforms.items():
                values = transform[chosen]
                row[name] = covered(values, level).mean() if np.isfinite(values).all() else np.nan
            rows.append({**row, "scale_factor": scale_factor})
    return pd.DataFrame(rows, columns=columns)


def with_mean_coverage(table: pd.DataFrame) -> pd.DataFrame:
    """Add means over the splits of a model, and the number of effects over all of them.

    Parameters
    ----------
    table
        Rows of :func:`coverage_table` with columns split and model.

    Returns
    -------
    DataFrame
        The same with ``n_effects``, ``mean_coverage``, ``mean_calibrated_coverage`` and
        ``mean_noise_coverage``, which repeat in the rows of a model, set of genes and level.
    """
    of_model = table.groupby(["model", "genes", "level"], sort=False)
    means = {f"mean_{name}": of_model[name].transform("mean") for name in COVERAGES}
    return table.assign(n_effects=of_model["n"].transform("sum"), **means)


# distances of the distributions of sampled and held-out cells; here, since tables and report need
# their names alone, not the models that samples come from
ENERGY, DISCREPANCY, VARIANCE = "energy_distance", "mmd", "variance_ratio"
DISTANCES: dict[str, Score] = {
    ENERGY: Score(
        "energy distance", "energy distance from held-out cells", "", "lower", 0.0, None
    ),
    DISCREPANCY: Score(
        "MMD",
        "squared maximum mean discrepancy from held-out cells, Gaussian kernel",
        "", "lower", 0.0, None,
    ),
    VARIANCE: Score(
        "variance ratio",
        "variance of predicted cells relative to that of held-out cells",
        "", "higher", 1.0, None,
    ),
}  # fmt: skip
POPULATION_COLUMNS = ["split", "model", "seed", "metric", "value", "control", "replicate"]


def with_mean_scaled(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``mean_scaled``, the mean over the runs of a model, to rows of vcc2026.tsv."""
    of_model = table.groupby(["model", "metric"], sort=False)
    return table.assign(mean_scaled=of_model["scaled"].transform("mean"))


CLEAR_SPAN = 2  # standard deviations of replicates


def clear_metrics(scores: pd.DataFrame) -> set[str]:
    """Choose the metrics of vcc2026.tsv by which models can be compared.

    These are the metrics on which a replicate is better than the mean response by more than two
    standard deviations of replicates, on every split. Scores on a narrower scale are mostly noise.
    """
    span = (scores["replicate"] - scores["baseline"]).abs()
    narrow = scores["mean_scaled"].isna() | ~(span > CLEAR_SPAN * scores["replicate_sd"])
    return set(scores["metric"]) - set(scores.loc[narrow, "metric"])


def with_means(table: pd.DataFrame) -> pd.DataFrame:
    """Add means over the runs of a model to rows of population.tsv."""
    of_model = table.groupby(["model", "metric"], sort=False)
    columns = POPULATION_COLUMNS[-3:]
    return table.assign(**{f"mean_{name}": of_model[name].transform("mean") for name in columns})
