"""What stands behind the results: the cells, the models, the files' origins and the run times."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from samsvae.config.models import KINDS
from samsvae.experiments import splits
from samsvae.files import read_table
from samsvae.grids import candidates, expanded, has_grid
from samsvae.labels import CONTROL, components

SECONDS_PER_MINUTE = 60


def describe(config: Mapping[str, Any], name: str) -> str:
    """Say in words what an experiment is."""
    experiment = config["experiments"][name]
    split = experiment["split"]
    kinds = {
        "random": "64 % of cells train, 16 % validate and 20 % test the models",
        "unseen_combinations": "a quarter of the combinations tests models that were trained on a "
        "fraction of all combinations, which up to 0.75 holds none of the tested ones",
        "as_simulated": "each part has the cells that the simulator made for it",
        "data_efficiency": "only a fraction of the combinations' training cells is used",
    }
    fractions = split.get("fractions")
    share = f" (fractions {', '.join(f'{f:g}' for f in fractions)})" if fractions else ""
    return (
        f"Screen “{experiment['screen']}” ({config['screens'][experiment['screen']]['source']}); "
        f"{kinds[split['kind']]}{share}. Split seeds: {', '.join(map(str, split['seeds']))}; "
        f"training seeds: {', '.join(map(str, experiment['seeds']))}; "
        f"up to {config['training']['max_steps']:,} training steps."
    )


def cells_in_words(split: Path, screen: Path) -> str:
    """Say how many cells, genes and perturbations a screen has.

    Parameters
    ----------
    split
        A table split.tsv of the screen.
    screen
        The screen's file, of which the number of genes alone is read.
    """
    labels = read_table(split)["perturbation"].value_counts()
    perturbed = labels.drop(CONTROL, errors="ignore")
    combined = sum(len(components(name)) > 1 for name in perturbed.index)
    with h5py.File(screen) as file:
        counts = file["X"]
        n_genes = int(counts.attrs["shape"][1] if "shape" in counts.attrs else counts.shape[1])
    among = f", {combined:,} of them combinations," if combined else ""
    return (
        f"{labels.sum():,} cells and {n_genes:,} genes; {len(perturbed):,} perturbations{among} "
        f"with a median of {perturbed.median():,.0f} cells; "
        f"{labels.get(CONTROL, 0):,} control cells."
    )


def competitors(config: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """List an experiment's models with what each is, in a line."""
    listed = []
    models = expanded(config["models"])
    for model in config["experiments"][name]["models"]:
        settings = models[model]
        what = KINDS[settings["kind"]].summary
        if settings.get("shuffle_labels"):
            what += "; trained on shuffled labels, and so a negative control"
        if has_grid(config["models"].get(model, {})):
            tried = len(candidates(model, config["models"][model]))
            what += f"; on each split the best of {tried} candidates by its validation cells"
        listed.append((model, what))
    return listed


def origins(config: Mapping[str, Any], results: Path) -> list[list[str]]:
    """List each experiment with its screen, and digests of data, settings and code of its split."""
    rows = []
    for name, experiment in config["experiments"].items():
        first = next(iter(splits(experiment)))
        made_by = json.loads((results / name / first / "split.json").read_text(encoding="utf-8"))
        digests = [made_by["inputs"]["screen"], made_by["config_digest"], made_by["code_digest"]]
        rows.append([name, experiment["screen"], *digests])
    return rows


def run_times(results: Path) -> list[list[str]]:
    """Sum up what Snakemake measured of the jobs of each rule.

    Parameters
    ----------
    results
        The folder of all results.

    Returns
    -------
    list of list of str
        From the longest to the shortest: rule, number of jobs, total and longest time, and the
        largest memory. Rules that were never measured are not there.
    """
    measured = []
    for file in sorted((results / "benchmarks").rglob("*.tsv")):
        rule = file.relative_to(results / "benchmarks").parts[0].removesuffix(".tsv")
        table = pd.read_csv(file, sep="\t", na_values="-")
        measured.append(table[["s", "max_rss"]].assign(rule=rule))
    if not measured:
        return []
    by_rule = (
        pd.concat(measured)
        .groupby("rule")
        .agg(
            jobs=("s", "size"), total=("s", "sum"), longest=("s", "max"), memory=("max_rss", "max")
        )
    )
    return [
        [
            str(rule).replace("_", " "),
            f"{row['jobs']:,.0f}",
            _duration(row["total"]),
            _duration(row["longest"]),
            "–" if pd.isna(row["memory"]) else f"{row['memory']:,.0f} MB",
        ]
        for rule, row in by_rule.sort_values("total", ascending=False).iterrows()
    ]


def _duration(seconds: float) -> str:
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), SECONDS_PER_MINUTE)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
