"""Where SAMS-VAE leads on a real screen, and where the mean of the training cells does.

``python -m benchmarks.paper_claim --screen papalexi papalexi2021_thp1_ko_20729x299.h5ad`` runs the
workflow on a screen with every family of models and the baselines, three splits and three training
seeds each, and prints one JSON object a line. ``--screen`` is ``papalexi`` or ``norman``;
``--unseen-pairs`` tests a quarter of the pairs, of which no cell is trained on. With ``--folder``
results are kept and an interrupted run is resumed; otherwise they are temporary.

- ``calibrated``: names of the metrics of held-out cells that can rank models on this screen (mean
  BDS of at least 0.8 over splits), and ``not_calibrated``: BDS of the others.
- ``anchors``: vcc2026 scores of the mean response and of a replicate, on how many splits the latter
  is better, and distances of populations of control cells and of a replicate.
- ``ranking``: models by the mean normalised score over calibrated metrics of different kinds, with
  its bootstrap interval and the probability to be the best.
- A model: ``metrics``, the mean of each calibrated metric over splits with its 95 % confidence
  interval, and ``not_ranked``, the same of the others; ``vcc2026`` scores, and ``vcc2026_scaled``,
  with their mean; ``population``, distances of sampled from held-out cells; ``iwelbo`` of test
  cells.
- A metric: ``best``; ``perturbations``, the number with a score; and ``significant``: by kind of
  replicate, every model with the models that are significantly worse (paired t-test, Holm's
  correction over all pairs). Kinds are splits, and perturbations of the same trained models.
- Two models: number of calibrated metrics of perturbations by which ``first`` is better, is better
  on every split, and is significantly better, over splits and over perturbations; the same of
  ``second``. ``ahead`` and ``behind`` name the metrics that differ significantly over
  perturbations. ``differences`` of scores over all perturbations and genes jointly, and of the
  IWELBO: mean, 95 % confidence interval, corrected p-value. These are given whether or not the
  metric can rank models.
- ``open_masks``: fraction of perturbations with an open mask, of models that have masks.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from samsvae.config.models import CEILINGS
from samsvae.evaluation.agreement import MASK_THRESHOLD
from samsvae.evaluation.compared import LEAST_BDS
from samsvae.evaluation.comparison import (
    NOT_SIGNIFICANT,
    RUNS,
    Rules,
    intervals,
    intervals_and_differences,
)
from samsvae.evaluation.metrics import DE, HELD_OUT, Score, meaning, of_perturbations
from samsvae.evaluation.scores import DISTANCES
from samsvae.evaluation.summary import IWELBO, NOT_RANKED
from samsvae.evaluation.vcc2026 import SCORES
from samsvae.inference.checkpoint import load_model
from samsvae.inference.posterior import mask_probability
from samsvae.runtime.files import read_table

SCREENS: dict[str, dict[str, Any]] = {
    "papalexi": {"batch_column": "bio_rep", "guide_column": "guide"},
    "norman": {},
}
SIZES = {"n_latent": 50, "n_hidden": 200, "on_target": True}  # those of config/own_screen.yaml
MODELS: dict[str, dict[str, Any]] = {
    "sams_vae_correlated": {
        "kind": "sams_vae", "embedding": "correlated", "mask_prior": 0.01, **SIZES
    },
    "sams_vae_mean_field": {
        "kind": "sams_vae", "embedding": "mean_field", "mask_prior": 0.01, **SIZES
    },
    "cpa_vae": {"kind": "cpa_vae", **SIZES},
    "svae_plus": {"kind": "svae_plus", **SIZES},
    "conditional_vae": {"kind": "conditional_vae", **SIZES},
    **{
        kind: {"kind": kind}
        for kind in (
            "training_mean", "additive", "bilinear", "mean_effect", "no_change", "split_half"
        )
    },
}  # fmt: skip
# only one target gene is among the genes of this file, and bilinear needs two
LEFT_OUT = {"norman": ["bilinear"]}
OURS = ("sams_vae_correlated", "sams_vae_mean_field")
TRAINING = {
    "max_steps": 1500, "batch_size": 256, "learning_rate": 0.003, "particles": 1,
    "validate_every": 250,
}  # fmt: skip
EVALUATION = {
    "effect_library_size": None, "iwelbo_particles": 25, "mapped_cells": 0, "interval_draws": 0
}  # fmt: skip
N_TOP = 20
CELLS = "cells"  # scope of scores of predicted cells
WHOLE = (f"pearson{HELD_OUT}", f"rmse{HELD_OUT}", IWELBO)  # of all perturbations, and of cells
RANKED = ("score", "low", "high", "probability_best")
# without limits: a model may exceed the replicate
SCALED = Score("scaled score", "between mean response and replicate", "", "higher", None, 0.0)
MEAN = "mean_scaled"  # over the vcc2026 metrics of a run
TABLES = (
    "calibration.tsv", "intervals.tsv", "paired_differences.tsv", "ranking.tsv", "summary.tsv",
    "vcc2026.tsv", "population.tsv",
)  # fmt: skip


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the configuration of a run of the workflow."""
    file = Path(arguments.file)
    if not file.is_file():
        file = ROOT.parent / "shared" / "data" / arguments.file
    screen = {
        "source": "h5ad", "path": str(file.resolve()), "perturbation_column": "condition",
        "control": "control", **SCREENS[arguments.screen],
    }  # fmt: skip
    split: dict[str, Any] = {"kind": "random", "seeds": arguments.splits}
    if arguments.unseen_pairs:
        split |= {
            "kind": "unseen_combinations", "fractions": [0.75],
            "untrained_perturbations": "keep_prior",
        }  # fmt: skip
    left_out = LEFT_OUT.get(arguments.screen, ())
    models = {name: model for name, model in MODELS.items() if name not in left_out}
    return {
        "screens": {arguments.screen: screen},
        "models": models,
        "training": TRAINING | {"max_steps": arguments.max_steps},
        "evaluation": EVALUATION,
        "experiments": {
            experiment_of(arguments): {
                "screen": arguments.screen, "split": split, "models": list(models),
                "seeds": arguments.seeds, "gene_sets": [],
            }
        },
    }  # fmt: skip


def experiment_of(arguments: argparse.Namespace) -> str:
    """Name the experiment of a run."""
    return f"{arguments.screen}_pairs" if arguments.unseen_pairs else str(arguments.screen)


def run_workflow(arguments: argparse.Namespace, folder: Path) -> Path:
    """Make the tables of a run in a folder; return the folder of the tables."""
    experiment = experiment_of(arguments)
    file = folder / f"{experiment}.yaml"
    file.write_text(yaml.safe_dump(configuration(arguments), sort_keys=False))
    tables = Path("results", experiment, "tables")
    subprocess.run(
        [
            sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"),
            "--directory", str(folder), "--configfile", str(file),
            "--cores", str(arguments.cores), "--", *(str(tables / name) for name in TABLES),
        ],
        check=True,
        stdout=sys.stderr,
    )  # fmt: skip
    return folder / tables


def single_names(names: Sequence[str]) -> dict[str, str]:
    """Map names of metrics to those of the scores of perturbations that they summarise.

    Only metrics of held-out cells: other truths contain the cells that were trained on.
    """
    single = {name: of_perturbations(name, N_TOP) for name in names}
    return {
        name: of
        for name, of in single.items()
        if of is not None and (of.endswith(HELD_OUT) or of.startswith(DE))
    }


def rounded(number: float) -> float | None:
    """Round a number; None, JSON's missing value, for NaN."""
    return None if pd.isna(number) else round(float(number), 4)


def by_model(table: pd.DataFrame) -> dict[str, dict[str, list[float | None]]]:
    """Collect means and intervals of a table by model and metric."""
    found: dict[str, dict[str, list[float | None]]] = {}
    for _, row in table.iterrows():
        numbers = [rounded(row[name]) for name in ("value", "low", "high")]
        found.setdefault(row["model"], {})[row["metric"]] = numbers
    return found


def scores_of_cells(folder: Path) -> tuple[dict[str, pd.DataFrame], pd.DataFrame, dict[str, Any]]:
    """Compare models by scores of predicted cells, as the workflow does by those of effects.

    Returns
    -------
    intervals
        Means and intervals of vcc2026 scores, of the same between mean response and replicate,
        and of distances of populations.
    differences
        Paired differences of vcc2026 scores, and of the mean of the scaled ones.
    anchors
        Means over splits of what scores and distances are compared with, and number of splits on
        which a replicate is better than the mean response.
    """
    models = list(MODELS)
    vcc, population = (
        read_table(folder / f"{name}.tsv").assign(scope=CELLS) for name in ("vcc2026", "population")
    )
    columns = ["split", "model", "seed", "scope", "metric", "value"]
    scaled = vcc.assign(value=vcc["scaled"])[columns]
    of_run = scaled.groupby(["split", "model", "seed", "scope"], as_index=False)["value"].mean()
    scaled = pd.concat([scaled, of_run.assign(metric=MEAN)])
    compared = pd.concat([vcc[columns], scaled[scaled["metric"] == MEAN]])
    rules, of_scaled, of_distances = (
        Rules(models, described, "holm", 0.05)
        for described in (lambda name: SCORES.get(name, SCALED), lambda _: SCALED, DISTANCES.get)
    )
    raw, differences = intervals_and_differences(compared, rules)
    tables = {
        "vcc2026": raw[raw["metric"] != MEAN],
        "vcc2026_scaled": intervals(scaled, of_scaled),
        "population": intervals(population, of_distances),
    }
    usable = scaled.dropna().groupby("metric")["split"].nunique()
    anchors = {
        "vcc2026": {
            name: {**means_of(rows, "baseline", "replicate"), "splits": int(usable.get(name, 0))}
            for name, rows in vcc.groupby("metric", sort=False)
        },
        "population": {
            name: means_of(rows, "control", "replicate")
            for name, rows in population.groupby("metric", sort=False)
        },
    }
    return tables, differences, anchors


def means_of(rows: pd.DataFrame, *names: str) -> dict[str, float | None]:
    """Average columns that are the same for all runs on a split."""
    return {name: rounded(rows[name].mean()) for name in names}


def significant_pairs(tests: pd.DataFrame) -> dict[str, dict[str, list[str]]]:
    """List the significantly worse models of each model, by kind of replicate."""
    found: dict[str, dict[str, list[str]]] = {}
    undecided = tests["better"].isna() | tests["better"].isin([NOT_SIGNIFICANT, NOT_RANKED])
    ceilings = tests["first"].isin(CEILINGS) | tests["second"].isin(CEILINGS)
    for _, row in tests[~undecided & ~ceilings].iterrows():
        worse = row["second"] if row["better"] == row["first"] else row["first"]
        found.setdefault(row["over"], {}).setdefault(row["better"], []).append(worse)
    return found


def metric_lines(means: pd.DataFrame, tests: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Summarise each metric: its calibration, the best model and significant differences."""
    competing = means[~means["model"].isin(CEILINGS)]
    for metric, rows in competing.groupby("metric", sort=False):
        score = meaning(str(metric), N_TOP)
        assert score is not None
        values = rows.set_index("model")["value"]
        own = tests[tests["metric"] == metric]
        number = own.loc[own["over"] == "perturbations", "n"].max()
        yield {
            "metric": metric,
            "drf": round(float(rows["drf"].iloc[0]), 3),
            "bds": round(float(rows["bds"].iloc[0]), 3),
            "perturbations": None if pd.isna(number) else int(number),
            "best": values.idxmin() if score.direction == "lower" else values.idxmax(),
            "significant": significant_pairs(own),
        }


def pair_line(tests: pd.DataFrame, first: str, second: str) -> dict[str, Any]:
    """Count the metrics by which each of two models is better."""
    of_pair = tests[tests["first"].isin([first, second]) & tests["second"].isin([first, second])]
    over_runs = of_pair[of_pair["over"].isin(RUNS)].set_index("metric")
    over_perturbations = of_pair[of_pair["over"] == "perturbations"].set_index("metric")
    # only scores of perturbations have both tests
    over_runs = over_runs.loc[over_runs.index.isin(over_perturbations.index)]
    lower = over_runs.index.map(lambda name: meaning(name, N_TOP).direction == "lower")  # type: ignore[union-attr]
    gain = over_runs["difference"].where(~lower, -over_runs["difference"])
    on_all = over_runs["fraction_better"]
    if len(over_runs) and over_runs["first"].iloc[0] != first:
        gain, on_all = -gain, 1 - on_all
    line: dict[str, Any] = {"first": first, "second": second, "metrics": len(over_runs)}
    for name, sign, model in (("first", 1, first), ("second", -1, second)):
        line[f"{name}_better"] = {
            "mean": int((sign * gain > 0).sum()),
            "every_split": int((on_all == (sign > 0)).sum()),
            "significant_over_splits": int((over_runs["better"] == model).sum()),
            "significant_over_perturbations": int((over_perturbations["better"] == model).sum()),
        }
    for name, model in (("ahead", first), ("behind", second)):
        better = over_perturbations["better"] == model
        line[name] = list(over_perturbations.index[better])
    return line


def differences_of_pair(
    tests: pd.DataFrame, first: str, second: str
) -> dict[str, list[float | None]]:
    """Collect what one model has more than another of :data:`WHOLE`, over runs.

    Returns
    -------
    dict
        By metric the mean difference, the limits of its interval, and the corrected p-value.
    """
    is_pair = tests["first"].isin([first, second]) & tests["second"].isin([first, second])
    chosen = tests[is_pair & tests["over"].isin(RUNS) & tests["metric"].isin(WHOLE)]
    found: dict[str, list[float | None]] = {}
    for _, row in chosen.iterrows():
        numbers = [row["difference"], row["low"], row["high"]]
        if row["first"] != first:
            numbers = [-row["difference"], -row["high"], -row["low"]]
        found[row["metric"]] = [rounded(one) for one in (*numbers, row["p_adjusted"])]
    return found


def report(folder: Path) -> Iterator[dict[str, Any]]:
    """Summarise the tables of a run."""
    means, tests = (
        read_table(folder / f"{name}.tsv") for name in ("intervals", "paired_differences")
    )
    means, tests = (table[table["scope"] == "test"] for table in (means, tests))
    models = [name for name in MODELS if name in set(means["model"])]
    bounds = means[means["metric"] == IWELBO]
    of_whole = tests[tests["metric"].isin(WHOLE)]
    single = single_names(means["metric"].unique())
    means, tests = (table[table["metric"].isin(single)] for table in (means, tests))
    judged = means.drop_duplicates("metric").set_index("metric")["bds"]
    cannot = judged.index[judged < LEAST_BDS]
    is_ranked = ~means["metric"].isin(cannot)
    yield {
        "calibrated": list(dict.fromkeys(means.loc[is_ranked, "metric"].map(single))),
        "not_calibrated": {single[name]: round(judged[name], 3) for name in cannot},
    }
    of_cells, tests_of_cells, anchors = scores_of_cells(folder)
    yield {"anchors": anchors}
    tables = {"metrics": means[is_ranked], "not_ranked": means[~is_ranked], **of_cells}
    found = {kind: by_model(table) for kind, table in {**tables, IWELBO: bounds}.items()}
    ranking = read_table(folder / "ranking.tsv").set_index("model")
    yield {
        "ranking": {
            model: {name: rounded(row[name]) for name in RANKED}
            for model, row in ranking.iterrows()
        },
        "metrics": ranking["metrics"].iloc[0],
    }
    for model in models:
        yield {"model": model, **{kind: own.get(model, {}) for kind, own in found.items()}}
    tests = tests[~tests["metric"].isin(cannot)]
    yield from metric_lines(means[is_ranked], tests)
    yield {
        "metric": IWELBO,
        "significant": significant_pairs(of_whole[of_whole["metric"] == IWELBO]),
    }
    for metric, own in tests_of_cells.groupby("metric", sort=False):
        yield {"metric": f"vcc2026 {metric}", "significant": significant_pairs(own)}
    for first in OURS:
        for second in models:
            if second not in CEILINGS and second != first:
                yield {
                    **pair_line(tests, first, second),
                    "differences": differences_of_pair(of_whole, first, second),
                }


def open_masks(experiment: Path) -> dict[str, float]:
    """Compute the fraction of perturbations with an open mask, mean over the runs of a model."""
    found: dict[str, list[float]] = {}
    for file in sorted(experiment.glob("*/*/seed*/model.safetensors")):
        probability = mask_probability(load_model(file).model)
        if probability is not None:
            is_open = (probability > MASK_THRESHOLD).any(dim=1)
            found.setdefault(file.parents[1].name, []).append(float(is_open.float().mean()))
    return {model: round(float(np.mean(each)), 3) for model, each in found.items()}


def read_options(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", help="a file of ../shared/data, or a path")
    parser.add_argument("--screen", choices=SCREENS, required=True)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2], help="seeds of splits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training")
    parser.add_argument("--max-steps", type=int, default=TRAINING["max_steps"])
    parser.add_argument("--unseen-pairs", action="store_true", help="test a quarter of the pairs")
    parser.add_argument("--folder", type=Path, default=None, help="where results are kept")
    parser.add_argument("--cores", default="all")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    """Run the workflow and print what its tables say."""
    arguments = read_options(given)
    chosen = nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory()
    with chosen as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        tables = run_workflow(arguments, folder)
        for line in report(tables):
            print(json.dumps(line))
        print(json.dumps({"open_masks": open_masks(tables.parent)}))


if __name__ == "__main__":
    main()
