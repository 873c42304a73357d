"""Comparison of the workflow's results with the published ones.

The paper reports mean and standard deviation over five splits. The confidence interval of its mean
is mean +- t s / sqrt(5). The verdict uses the prediction interval of the mean of n new splits,
mean +- t s sqrt(1/5 + 1/n), since the mean of a new run varies, too. Both are at 95 %, with 4
degrees of freedom. The splits are treated as independent of the paper's, whose cells are not
published.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from samsvae.config.experiments import PUBLISHED_TASKS, Split
from samsvae.evaluation.comparison import CONFIDENCE, mean_and_interval
from samsvae.evaluation.summary import relative_bounds

# models and settings of Bereket and Karaletsos (2023) for the screen of Norman et al. 2019, which
# are identified by kind and hyperparameters, not by their name in a configuration
CELLS, GENES = 111_255, 5_000
STEPS = 30_000

# scope and metric of the workflow, by quantity of the published table
QUANTITIES = {
    "val_iwelbo": ("val", "iwelbo"),
    "test_iwelbo": ("test", "iwelbo"),
    "test_iwelbo_relative": ("test", "iwelbo_relative"),
    "ate_pearson_test": ("test", "pearson"),
    "ate_pearson_top20_test": ("test", "pearson_top20"),
}
REFERENCE = "sams_vae_correlated"  # of relative bounds, trained without any pairs

# settings that identify the published models; the table has those with one hidden layer
_COMMON = {"n_layers": 1, "shuffle_labels": False}
MODELS: dict[str, dict[str, Any]] = {
    "sams_vae_correlated": {"kind": "sams_vae", "embedding": "correlated"},
    "sams_vae_mean_field": {"kind": "sams_vae", "embedding": "mean_field"},
    "cpa_vae": {"kind": "cpa_vae"},
    "conditional_vae": {"kind": "conditional_vae"},
    "svae+": {"kind": "svae_plus"},
}
_BASAL_ENCODER = {"basal_encoder": "correlated"}

# further published settings, for models that have them
HYPERPARAMETERS = {
    "n_latent": 200,
    "n_hidden": 400,
    "likelihood": "negative_binomial",
    "mask_prior": 0.01,
    "beta": 2,
    "embedding_prior_scale": 1,
    "embedding_n_layers": 4,
    "embedding_n_hidden": 400,
}
_OF_CORRELATED_EMBEDDINGS = {"embedding_n_layers", "embedding_n_hidden"}
TRAINING = {
    "batch_size": 512,
    "particles": 5,
    "learning_rate": 0.0003,
    "learning_rate_schedule": "constant",
    "warm_up_steps": 0,
    "weight_decay": 0.000001,
    "gradient_clip": 100,
    "objective": "elbo",
    "mask_kl": "sampled",
    "mask_warmup_fraction": 0,
    "mask_kl_weight": 0,
}
BOUNDS = {"iwelbo_particles": 100}
EFFECTS = {"effect_estimator": "sampled", "effect_draws": 2_500}

Settings = Mapping[str, Any]


def models_like(model: str, unique: bool, models: Mapping[str, Settings]) -> list[str]:
    """Find the models of a configuration that match a published model.

    Parameters
    ----------
    model
        Name in the published table.
    unique
        Whether combinations are perturbations of their own.
    models
        Settings by name.

    Returns
    -------
    list of str
        Names, in the order of `models`.
    """
    wanted = {**MODELS[model], **_COMMON, "combinations": "unique" if unique else "additive"}
    if wanted["kind"] in ("sams_vae", "cpa_vae"):
        wanted |= _BASAL_ENCODER
    return [
        name
        for name, settings in models.items()
        if all(settings.get(key) == value for key, value in wanted.items())
    ]


def differing_settings(
    model: Settings, training: Settings, evaluation: Settings, quantity: str
) -> list[str]:
    """List the settings that differ from the paper's, as text.

    Parameters
    ----------
    model, training, evaluation
        Settings of a model, its training and its evaluation.
    quantity
        Quantity of the published table.
    """
    wanted: dict[str, Any] = dict(HYPERPARAMETERS)
    if model.get("embedding") != "correlated":
        wanted = {k: v for k, v in wanted.items() if k not in _OF_CORRELATED_EMBEDDINGS}
    wanted |= TRAINING | (EFFECTS if quantity.startswith("ate_") else BOUNDS)
    settings = {**model, **training, **evaluation}
    if settings["effect_draws"] is None and settings["effect_estimator"] == "sampled":
        settings["effect_draws"] = EFFECTS["effect_draws"]
    return [
        f"{key} {settings[key]} (paper: {value})"
        for key, value in wanted.items()
        if key in settings and settings[key] != value
    ]


INSIDE, OUTSIDE = "inside", "outside"
NOT_FULL, OTHER_SETTINGS, NOT_RUN = "not at full scale", "other settings", "not run"
BY_DEFINITION = "0 by definition"
AS_PUBLISHED = "as in the paper"
# columns that are empty without a run
OURS = (
    "our_model",
    "our_mean",
    "our_low",
    "our_high",
    "our_splits",
    "difference",
    "prediction_low",
    "prediction_high",
    "in_confidence_interval",
    "in_prediction_interval",
)


@dataclass(frozen=True)
class Experiment:
    """Results and settings of an experiment.

    Attributes
    ----------
    metrics
        Columns split, model, seed, scope, metric and value, of runs.
    history
        The table training.tsv.
    splits
        Splits of the experiment, by name.
    models
        Settings of its trained models, by name.
    training, evaluation
        Settings of training and evaluation.
    n_cells, n_genes
        Size of the screen.
    """

    metrics: pd.DataFrame
    history: pd.DataFrame
    splits: Mapping[str, Split]
    models: Mapping[str, Mapping[str, Any]]
    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    n_cells: int
    n_genes: int

    @property
    def has_the_papers_cells(self) -> bool:
        """Whether the numbers of cells and genes are the paper's, so that results compare."""
        return (self.n_cells, self.n_genes) == (CELLS, GENES)


def reproduction(published: pd.DataFrame, ours: Experiment) -> pd.DataFrame:
    """Compare the results of an experiment with the published ones.

    Parameters
    ----------
    published
        The table published_norman.csv.
    ours
        An experiment with a kind of split of the paper.

    Returns
    -------
    DataFrame
        One row per published value, and more if several models of the experiment match the
        published one:

        - ``task``, ``fraction``, ``model``, ``combinations`` and ``quantity`` (of the published
          table);
        - ``paper_mean``, ``paper_sd``, ``paper_splits``, and ``paper_low`` and ``paper_high``, 95 %
          for the mean;
        - ``our_model`` (its name here), ``our_mean`` with ``our_low`` and ``our_high`` (95 %, over
          splits), ``our_splits`` (their number); empty without a run, but for the name if other
          quantities were run;
        - ``difference`` (ours minus the paper's), ``prediction_low`` and ``prediction_high`` (95 %
          prediction interval of the mean of as many new splits), ``in_confidence_interval`` and
          ``in_prediction_interval`` (yes or no); empty if cells or genes are not the paper's;
        - ``verdict``: ``inside`` or ``outside`` of the prediction interval if scale and settings
          are the paper's, else ``not at full scale``, ``other settings``, ``not run``, or
          ``0 by definition`` for the reference itself;
        - ``steps`` (the smallest number over runs), ``scale`` and ``settings``, the differences
          from the paper as text.

        Bounds are in nats per cell, and relative ones are differences to SAMS-VAE with correlated
        embeddings at fraction 0 on the split of the same seed; correlations are of average
        treatment effects among all cells of the test perturbations.
    """
    kinds = {split.kind for split in ours.splits.values()}
    wanted = published[published["task"].isin([PUBLISHED_TASKS[kind] for kind in kinds])]
    metrics = _with_relative_bounds(ours)
    rows = []
    for _, row in wanted.iterrows():
        names = models_like(row["model"], bool(row["encode_unique"]), ours.models)
        of_fraction = [
            name
            for name, split in ours.splits.items()
            if np.isclose(float(split.fraction or 0), row["fraction"])
        ]
        runs = metrics[metrics["split"].isin(of_fraction) & metrics["model"].isin(names)]
        present: list[str | None] = [name for name in names if name in set(runs["model"])]
        for quantity, question in QUANTITIES.items():
            said = _published(row, quantity)
            for name in present or [None]:
                rows.append({**said, **_ours(ours, runs, name, question, said)})
    return pd.DataFrame(rows)


def _with_relative_bounds(ours: Experiment) -> pd.DataFrame:
    """Add bounds relative to the paper's reference, if the experiment has it at fraction 0."""
    reference = models_like(REFERENCE, unique=False, models=ours.models)[:1]
    if not reference or all(split.fraction != 0 for split in ours.splits.values()):
        return ours.metrics
    return pd.concat([ours.metrics, relative_bounds(ours.metrics, ours.splits, reference)])


def _published(row: "pd.Series[Any]", quantity: str) -> dict[str, Any]:
    mean, sd, n = row[f"{quantity}_mean"], row[f"{quantity}_sd"], int(row["n_splits"])
    half = _t(n) * sd / np.sqrt(n)
    return {
        "task": row["task"],
        "fraction": row["fraction"],
        "model": row["model"],
        "combinations": "unique" if row["encode_unique"] else "additive",
        "quantity": quantity,
        "paper_mean": mean,
        "paper_sd": sd,
        "paper_splits": n,
        "paper_low": mean - half,
        "paper_high": mean + half,
    }


def _ours(
    ours: Experiment,
    runs: pd.DataFrame,
    name: str | None,
    question: tuple[str, str],
    said: Mapping[str, Any],
) -> dict[str, Any]:
    empty = dict.fromkeys(OURS)
    not_run = {**empty, "verdict": NOT_RUN, "steps": None, "scale": NOT_RUN, "settings": None}
    if name is None:
        return not_run
    scope, metric = question
    asked = (runs["model"] == name) & (runs["scope"] == scope) & (runs["metric"] == metric)
    of_splits = runs[asked].dropna(subset="value").groupby("split")["value"].mean()
    if not len(of_splits):
        return {**not_run, "our_model": name}
    mean, low, high = (
        float(value[0]) for value in mean_and_interval(of_splits.to_numpy()[:, None])
    )
    steps = _steps(ours.history, name, list(of_splits.index))
    less = _less(ours, len(of_splits), said["paper_splits"], steps)
    other = differing_settings(ours.models[name], ours.training, ours.evaluation, said["quantity"])
    found = {
        **empty,
        "our_model": name,
        "our_mean": mean,
        "our_low": low,
        "our_high": high,
        "our_splits": len(of_splits),
        "verdict": NOT_FULL if less else OTHER_SETTINGS,
        "steps": steps,
        "scale": f"{NOT_FULL}: {'; '.join(less)}" if less else AS_PUBLISHED,
        "settings": "; ".join(other) or AS_PUBLISHED,
    }
    if said["paper_sd"] == 0:  # the reference itself
        return {**found, "verdict": BY_DEFINITION}
    if not ours.has_the_papers_cells:
        return found
    n = said["paper_splits"]
    half = _t(n) * said["paper_sd"] * np.sqrt(1 / n + 1 / len(of_splits))
    expected = said["paper_mean"] - half, said["paper_mean"] + half
    is_expected = bool(expected[0] <= mean <= expected[1])
    found |= {
        "difference": mean - said["paper_mean"],
        "prediction_low": expected[0],
        "prediction_high": expected[1],
        "in_confidence_interval": _yes(said["paper_low"] <= mean <= said["paper_high"]),
        "in_prediction_interval": _yes(is_expected),
    }
    if not less and not other:
        found["verdict"] = INSIDE if is_expected else OUTSIDE
    return found


def _steps(history: pd.DataFrame, model: str, splits: list[str]) -> int:
    """Find the smallest number of training steps over the runs of a model on some splits."""
    own = history[(history["model"] == model) & history["split"].isin(splits)]
    return int(own.groupby(["split", "seed"])["step"].max().min())


def _less(ours: Experiment, n_splits: int, n_published: int, steps: int) -> list[str]:
    """List differences in scale from the paper, as text."""
    counted = [
        ("cells", ours.n_cells, CELLS, ours.n_cells != CELLS),
        ("genes", ours.n_genes, GENES, ours.n_genes != GENES),
        ("training steps", steps, STEPS, steps != STEPS),
        ("split seeds", n_splits, n_published, n_splits < n_published),
    ]
    return [
        f"{what} {number:,} (paper: {published:,})"
        for what, number, published, differs in counted
        if differs
    ]


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Format the table of a reproduction, one row per published model and fraction.

    Parameters
    ----------
    table
        As of :func:`reproduction`.

    Returns
    -------
    DataFrame
        Text: the numbers of verdicts; for each quantity of test cells and perturbations the
        paper's and our mean with half the 95 % interval over splits; scale and settings of our
        runs.
    """
    rows = []
    keys = ["fraction", "model", "combinations", "our_model"]
    for (fraction, model, combinations, _), group in table.groupby(keys, sort=False, dropna=False):
        verdicts = group["verdict"].value_counts(sort=False)
        several = len(verdicts) > 1
        row = {
            "fraction": f"{fraction:g}",
            "model": model,
            "pairs": combinations,
            "verdict": ", ".join(f"{n} {v}" if several else v for v, n in verdicts.items()),
        }
        for _, one in group[group["quantity"] != "val_iwelbo"].iterrows():
            digits = 2 if "iwelbo" in one["quantity"] else 3
            row[f"{one['quantity']}_paper"] = _in_text(one, "paper", digits)
            row[f"{one['quantity']}_ours"] = _in_text(one, "our", digits)
        row["scale"] = group["scale"].mode()[0]
        row["settings"] = max(group["settings"].dropna(), key=len, default="")
        rows.append(row)
    return pd.DataFrame(rows)


def _in_text(row: "pd.Series[Any]", whose: str, digits: int) -> str:
    mean, high = row[f"{whose}_mean"], row[f"{whose}_high"]
    if pd.isna(mean):
        return NOT_RUN
    spread = "" if pd.isna(high) else f" ± {high - mean:.{digits}f}"
    return f"{mean:.{digits}f}".replace("-", "−") + spread


def _t(n: int) -> float:
    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))


def _yes(true: bool) -> str:
    return "yes" if true else "no"
