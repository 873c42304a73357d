"""Sentences and small tables of the report, from the tables of an experiment."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from samsvae.biology import ALL, INDEPENDENT_WITHIN
from samsvae.biology.enrichment import OVER_REPRESENTATION
from samsvae.config.experiments import candidates, expanded, has_grid, is_trained, splits
from samsvae.config.models import KINDS
from samsvae.evaluation.reproduction import INSIDE, OUTSIDE
from samsvae.evaluation.scores import (
    ENERGY,
    LEVEL,
    SIGNIFICANT,
    TESTED,
    VARIANCE,
    clear_metrics,
)
from samsvae.evaluation.vcc2026 import SCORES
from samsvae.figures import minus, readable, readable_set
from samsvae.report.sections import (
    CELLS,
    CONTEXTS,
    COUNTS,
    GENE_SETS,
    INTERVALS,
    MARGINAL,
    MASKS,
    PAPER,
    TRAINING,
)
from samsvae.report.soundness import quality_in_words
from samsvae.report.verdict import MOST_NAMED, counted, sentences, some_of
from samsvae.runtime.files import read_table
from samsvae.screen.labels import CONTROL, components

SECONDS_PER_MINUTE = 60
HALF = 0.5  # of the variance of an effect


def describe(config: Mapping[str, Any], name: str) -> str:
    """Describe an experiment in a paragraph."""
    experiment = config["experiments"][name]
    split = experiment["split"]
    kinds = {
        "random": "64 % of the cells, whatever their perturbation, for training, 16 % for "
        "validation and 20 % for testing",
        "unseen_combinations": "a quarter of the combinations is held out for testing; training "
        "uses a "
        "fraction of all combinations, which up to 0.75 contains none of the tested ones",
        "as_simulated": "training, validation and test cells as simulated",
        "data_efficiency": "only a fraction of the combinations' training cells is used",
        "unseen_contexts": "perturbations are tested in contexts in which they were not trained "
        "on; training uses a fraction of all pairs of a perturbation and a context",
        "leave_context_out": "the perturbed cells of a context are tested, and training uses its "
        "control cells and the other contexts",
        "from_column": f"parts as in the column “{split.get('column')}” of the screen",
        "from_table": f"parts as in the table {split.get('table')}",
        "unseen_perturbations": "all cells with a held-out perturbation are tested; training uses "
        "a fraction of the single perturbations",
    }
    fractions = split.get("fractions")
    part = f" (fractions {', '.join(f'{f:g}' for f in fractions)})" if fractions else ""
    if split.get("contexts"):
        part = f" ({', '.join(split['contexts'])})"
    models = expanded(config["models"])
    is_any_trained = any(is_trained(models[name]) for name in experiment["models"])
    steps = f"; up to {config['training']['max_steps']:,} training steps" if is_any_trained else ""
    return (
        f"Screen “{experiment['screen']}” ({config['screens'][experiment['screen']]['source']}); "
        f"{kinds[split['kind']]}{part}. Split seeds: {', '.join(map(str, split['seeds']))}; "
        f"training seeds: {', '.join(map(str, experiment['seeds']))}{steps}."
    )


JUDGED = {
    "random": "held-out cells of perturbations that models were trained on",
    "unseen_combinations": "combinations that models were not trained on",
    "data_efficiency": "combinations of which models were trained on few cells, or none",
    "unseen_contexts": "perturbations in contexts in which models were not trained on them",
    "leave_context_out": "perturbed cells of a context of which models saw control cells alone",
    "unseen_perturbations": "perturbations that models were not trained on",
}


def judged_in_words(split: str) -> str:
    """Say on which cells predictions are judged, by the kind of split."""
    return f"Predictions are judged on {JUDGED.get(split, 'the test cells of the split')}."


def cells_in_words(split: Path, screen: Path, has: Collection[str] = ()) -> str:
    """Describe the number of cells, genes and perturbations of a screen.

    Parameters
    ----------
    split
        A table split.tsv of the screen.
    screen
        The screen's file; only its number of genes is read.
    has
        Properties of the experiment, see :mod:`samsvae.report.sections`.
    """
    labels = read_table(split)["perturbation"].value_counts()
    perturbed = labels.drop(CONTROL, errors="ignore")
    combined = sum(len(components(name)) > 1 for name in perturbed.index)
    with h5py.File(screen) as file:
        counts = file["X"]
        n_genes = int(counts.attrs["shape"][1] if "shape" in counts.attrs else counts.shape[1])
    n_control = labels.get(CONTROL, 0)
    if MARGINAL in has:
        parts = {name: components(name) for name in perturbed.index}
        number = pd.Series(parts, dtype=object).explode().rename("part").to_frame()
        of_single = perturbed.reindex(number.index).groupby(number["part"].to_numpy()).sum()
        return (
            f"{labels.sum():,} cells and {n_genes:,} genes; {len(of_single):,} perturbations, "
            f"each in a median of {of_single.median():,.0f} cells, and "
            f"{of_single.sum() / max(perturbed.sum(), 1):.1f} in a perturbed cell on average; "
            f"{n_control:,} control cells. Effects are marginal: of a single perturbation in all "
            "cells that have it, whatever others these have."
        )
    among = f", {combined:,} of them combinations," if combined else ""
    return (
        f"{labels.sum():,} cells and {n_genes:,} genes; {len(perturbed):,} perturbations{among} "
        f"with a median of {perturbed.median():,.0f} cells; "
        f"{n_control:,} control cells."
    )


def competitors(config: Mapping[str, Any], name: str) -> list[tuple[str, str]]:
    """List an experiment's models with a one-line description."""
    listed = []
    models = expanded(config["models"])
    for model in config["experiments"][name]["models"]:
        settings = models[model]
        what = KINDS[settings["kind"]].summary
        if settings.get("shuffle_labels"):
            what += "; trained on shuffled labels, a negative control"
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


def run_times(results: Path, names: Collection[str]) -> list[list[str]]:
    """Summarise the run times and memory of jobs by what they do.

    Parameters
    ----------
    results
        The folder of all results, which several configurations may share.
    names
        Experiments and screens whose jobs are counted.

    Returns
    -------
    list of list of str
        From the longest to the shortest: what is done, number of jobs, total and longest time, and
        the largest memory. Jobs that were never measured are not there.
    """
    measured = []
    benchmarks = results / "benchmarks"
    for file in sorted(benchmarks.glob("*/**/*.tsv")):
        what, of, *_ = file.relative_to(benchmarks).with_suffix("").parts
        if of in names:
            table = pd.read_csv(file, sep="\t", na_values="-")
            measured.append(table[["s", "max_rss"]].assign(what=what))
    if not measured:
        return []
    by_work = (
        pd.concat(measured)
        .groupby("what")
        .agg(
            jobs=("s", "size"), total=("s", "sum"), longest=("s", "max"), memory=("max_rss", "max")
        )
    )
    return [
        [
            str(what).replace("_", " "),
            f"{row['jobs']:,.0f}",
            _duration(row["total"]),
            _duration(row["longest"]),
            "–" if pd.isna(row["memory"]) else f"{row['memory']:,.0f} MB",
        ]
        for what, row in by_work.sort_values("total", ascending=False).iterrows()
    ]


def _duration(seconds: float) -> str:
    if seconds < SECONDS_PER_MINUTE:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), SECONDS_PER_MINUTE)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


MOST_OF_SET = 6  # perturbations with a gene set
MOST_ESCAPED = 6  # perturbations whose escaped cells are counted


def answers_of_sections(
    tables: Path,
    has: Collection[str],
    kind: str | None,
    fdr: float,
    n_top: int,
    masked: Sequence[str] = (),
) -> dict[str, list[str]]:
    """Answer the question of each section of the report in a few sentences.

    Parameters
    ----------
    tables
        Folder of the experiment's tables.
    has
        Properties of the experiment, see :mod:`samsvae.report.sections`.
    kind
        How perturbations act on their targets; None if unknown.
    fdr
        False discovery rate of hits.
    n_top
        Genes per perturbation in the top-gene metrics.
    masked
        Models of the experiment with masks.
    """

    def of(table: str) -> pd.DataFrame:
        return read_table(tables / f"{table}.tsv")

    said = {name: list(found) for name, found in sentences(of("summary"), n_top).items()}
    said["effects"] = [*of("verdict")["verdict"], *said["effects"]]
    said["effects"] += reproduction_in_words(tables, has)
    if COUNTS in has:
        said["quality"] = quality_in_words(tables, has, kind, fdr)
        said["effects"] += missed_in_words(of("missed_effects"))
        said["expression"] = changes_in_words(of("perturbations"))
        said["combinations"] = combinations_in_words(of("combinations"))
        if INTERVALS in has:
            said["effects"] += coverage_in_words(of("coverage"))
        if CELLS in has:
            said["effects"] += vcc_in_words(of("vcc2026"))
            said["effects"] += spread_in_words(of("population")) if TRAINING in has else []
        if CONTEXTS in has:
            said["expression"] += predicted_contexts_in_words(of("context_scores"))
        if GENE_SETS in has:
            said["pathways"] = pathways_in_words(of("pathway_agreement"))
        if TRAINING in has:
            said["responders"] = responders_in_words(of("responders"))
    if TRAINING in has:
        said["mechanisms"] = masks_in_words(of("factors"), masked) if MASKS in has else []
        said["basal"] = basal_in_words(of("basal"))
    return said


def changes_in_words(perturbations: pd.DataFrame) -> list[str]:
    """Describe the number of perturbations that change a gene, and the strongest ones."""
    changing = perturbations[perturbations["n_de"] > 0]
    sentence = (
        f"{len(changing):,} of {len(perturbations):,} perturbations significantly change the "
        "expression of at least one gene"
    )
    if changing.empty:
        return [f"{sentence}."]
    strongest = ", ".join(
        f"{row['perturbation']} ({row['n_de']:,})"
        for _, row in changing.head(MOST_NAMED).iterrows()
    )
    return [f"{sentence}; those with the most changed genes are {strongest}."]


def missed_in_words(missed: pd.DataFrame) -> list[str]:
    """Describe how much of the observed effects models explain, and what they miss."""
    known = missed.dropna(subset="explained")
    if known.empty:
        return ["No perturbation has an effect on held-out cells beyond noise."]
    said, nothing = [], []
    for model, rows in known.groupby("model", sort=False):
        explained = rows.groupby("perturbation")["explained"].mean()
        if explained.max() <= 0:
            nothing.append(readable(str(model)))
        else:
            said.append(
                f"{readable(str(model))} of {(explained >= HALF).sum():,} "
                f"(median {100 * explained.median():.0f} %)"
            )
    sentences = []
    if said:
        number = known["perturbation"].nunique()
        sentences.append(
            f"Of {counted(number, 'perturbations')} with an effect on held-out cells beyond noise, "
            f"half or more of the effect is explained by {', '.join(said)}."
        )
    if nothing:
        sentences.append(f"No part of any effect is predicted by {', '.join(nothing)}.")
    return sentences


def responders_in_words(responders: pd.DataFrame) -> list[str]:
    """Describe the fractions of responders, and the perturbations with the fewest."""
    pooled = responders[responders["guide"].fillna("") == ""]
    known = pooled.dropna(subset="responders").sort_values("responders", kind="stable")
    if pooled.empty:
        return []
    if known.empty:
        return [
            "Cells that respond to a perturbation cannot be distinguished from others for "
            f"any of {len(pooled):,} perturbations: effects are too small in a single cell."
        ]
    return [escaped_in_words(responders)]


def escaped_in_words(responders: pd.DataFrame) -> str:
    """Describe how many cells escape their perturbation; empty where this is unknown for all."""
    pooled = responders[responders["guide"].fillna("") == ""]
    known = pooled.dropna(subset="responders").sort_values("responders", kind="stable")
    if known.empty:
        return ""
    named = [
        f"{row['perturbation']} {100 * (1 - row['responders']):.0f} % "
        f"({row['n_cells'] * (1 - row['responders']):,.0f} "
        f"[{row['n_cells'] * (1 - row['high']):,.0f}, {row['n_cells'] * (1 - row['low']):,.0f}] "
        f"of {row['n_cells']:,})"
        for _, row in known.head(MOST_ESCAPED).iterrows()
    ]
    return (
        f"For {len(known):,} of {len(pooled):,} perturbations it can be told which cells respond; "
        f"effects of the others are too small in a single cell. A median of "
        f"{100 * known['responders'].median():.0f} % respond. Estimated cells that do not respond, "
        f"by their fraction: {some_of(named, MOST_ESCAPED)}."
    )


def coverage_in_words(coverage: pd.DataFrame) -> list[str]:
    """Describe how many held-out effects lie inside the intervals of predicted effects."""
    rows = coverage[np.isclose(coverage["level"], LEVEL)]
    named = []
    for model, of_model in rows.drop_duplicates(["model", "genes"]).groupby("model", sort=False):
        by_genes = of_model.set_index("genes")
        sentence = f"{readable(str(model))} {_covered(by_genes.loc[TESTED])}"
        if SIGNIFICANT in by_genes.index:
            sentence += f" (of significantly changed genes {_covered(by_genes.loc[SIGNIFICANT])})"
        named.append(sentence)
    if not named:
        return []
    return [
        f"{100 * LEVEL:.0f} % intervals cover this fraction of the effects observed in test cells, "
        f"sampling noise included: {'; '.join(named)}."
    ]


def _covered(row: "pd.Series[Any]") -> str:
    raw, calibrated = row["mean_coverage"], row["mean_calibrated_coverage"]
    if pd.isna(calibrated):
        return f"{100 * raw:.0f} %, not calibrated"
    return f"{100 * raw:.0f} %, calibrated {100 * calibrated:.0f} %"


def vcc_in_words(scores: pd.DataFrame) -> list[str]:
    """Describe the scores of predicted cells by the rules vcc2026, mean over clear metrics."""
    if scores.empty:
        return []
    known = scores[scores["metric"].isin(clear_metrics(scores))]
    known = known.drop_duplicates(["model", "metric"])
    unknown = [name for name in SCORES if name not in set(known["metric"])]
    means = known.groupby("model", sort=False)["mean_scaled"].mean()
    named = ", ".join(f"{readable(str(model))} {minus(f'{v:.2f}')}" for model, v in means.items())
    number = known["metric"].nunique()
    said = []
    if named:
        said.append(
            "By the rules vcc2026, on a scale from 0 (mean response) to 1 (a replicate of half of "
            f"the held-out cells), predicted cells score, mean over {number} "
            f"metric{'s' * (number != 1)}: {named}."
        )
    if unknown:
        headings = ", ".join(SCORES[name].heading for name in unknown)
        said.append(
            f"A replicate is not clearly better than the mean response on {headings}: with these "
            "held-out cells, such a metric cannot rank models, and is left out of the mean."
        )
    return said


def spread_in_words(population: pd.DataFrame) -> list[str]:
    """Describe what the cells sampled from trained models miss of the spread of held-out cells."""
    if population.empty:
        return []
    named = []
    columns = ["mean_value", "mean_control", "mean_replicate"]
    for model, rows in population.groupby("model", sort=False):
        found = rows.drop_duplicates("metric").set_index("metric")[columns]
        energy = found.loc[ENERGY]
        gap = energy["mean_control"] - energy["mean_replicate"]
        left = (energy["mean_value"] - energy["mean_replicate"]) / gap if gap > 0 else np.nan
        named.append(
            f"{readable(str(model))} {100 * found.loc[VARIANCE, 'mean_value']:.0f} % of the "
            "variance" + ("" if np.isnan(left) else f", distance {100 * max(left, 0):.0f} %")
        )
    return [
        "Variance of cells sampled from a model relative to that of held-out cells of the same "
        "perturbation, and the energy distance between the two on a scale from 0 % (a replicate) "
        f"to 100 % (control cells): {'; '.join(named)}."
    ]


def predicted_contexts_in_words(scores: pd.DataFrame) -> list[str]:
    """Describe how well effects are predicted in contexts with and without training cells."""
    known = scores.dropna(subset="explained")
    said = []
    for trained, where in ((True, "in which it was trained"), (False, "in which it was not")):
        chosen = known[known["trained"].astype(bool) == trained]
        if chosen.empty:
            continue
        number = len(chosen[["perturbation", "context"]].drop_duplicates())
        medians = chosen.groupby("model", sort=False)["explained"].median()
        named = ", ".join(f"{readable(str(of))} {100 * v:.0f} %" for of, v in medians.items())
        said.append(
            f"Of the effect of a perturbation in a context {where} (effects beyond noise: "
            f"{number:,}), a median of {named} is explained."
        )
    return said


def masks_in_words(factors: pd.DataFrame, masked: Sequence[str]) -> list[str]:
    """Name the models with masks that open none."""
    closed = [readable(model) for model in masked if model not in set(factors["model"])]
    if not closed:
        return []
    return [
        f"No mask is open in {some_of(closed)}: no perturbation has evidence of moving the latent "
        "state, and predicted effects are on-target effects at most."
    ]


def pathways_in_words(agreement: pd.DataFrame) -> list[str]:
    """Describe the most significant gene set of perturbations, and how often models agree."""
    tested = agreement[agreement["method"] == OVER_REPRESENTATION]
    known = tested.dropna(subset="top_observed")
    if known.empty:
        return ["No gene set is significantly over-represented among the genes of largest effect."]
    first = known[known["model"] == known["model"].iloc[0]]
    groups = first.groupby("top_observed", sort=False)["perturbation"].agg(list)
    named = "; ".join(
        f"{readable_set(str(name))} ({some_of(members, MOST_OF_SET)})"
        for name, members in groups.iloc[groups.map(len).argsort(kind="stable")[::-1]]
        .head(MOST_NAMED)
        .items()
    )
    same = known["same_top"].astype(str).str.lower() == "true"
    right = same.groupby(known["model"], sort=False).agg(["sum", "size"])
    predicted = ", ".join(
        f"{readable(str(model))} for {row['sum']} of {row['size']}"
        for model, row in right.iterrows()
    )
    return [
        "Gene sets most significantly over-represented among the genes of largest effect, each "
        f"perturbation under its first: {named}.",
        f"Predicted effects rank the same gene set first, significant or not: {predicted}.",
        _number_of_sets(tested),
    ]


def _number_of_sets(tested: pd.DataFrame) -> str:
    """Say how many gene sets were tested, over which multiple testing is corrected."""
    number = tested.groupby("gene_sets", sort=False)["n_sets"].max()
    named = ", ".join(f"{int(n):,} of {readable(str(name))}" for name, n in number.items())
    return f"Gene sets with enough measured genes, which were tested: {named}."


def combinations_in_words(combinations: pd.DataFrame) -> list[str]:
    """Describe the number of significantly non-additive combinations."""
    if combinations.empty:
        return []
    first = combinations[combinations["model"] == combinations["model"].iloc[0]]
    non_additive = first[first["n_non_additive"] > 0].sort_values("n_non_additive", ascending=False)
    sentence = (
        f"{len(non_additive):,} of {len(first):,} combinations "
        f"{'is' if len(non_additive) == 1 else 'are'} significantly non-additive "
        "for at least one gene"
    )
    if non_additive.empty:
        return [f"{sentence}."]
    row = non_additive.iloc[0]
    return [f"{sentence}, most genes in {row['perturbation']} ({row['non_additive_genes']})."]


def basal_in_words(basal: pd.DataFrame) -> list[str]:
    """Tell how well basal states predict perturbations, and whether they count as independent."""
    asked = basal[(basal["state"] == "basal") & (basal["labels"] == "true")]
    asked = asked[asked["claimed"].astype(bool)]
    rows = asked[asked["perturbation"] == ALL]
    if rows.empty:
        return []
    found = ", ".join(
        f"{100 * accuracy:.1f} % by {readable(str(model))}"
        for model, accuracy in rows.groupby("model", sort=False)["accuracy"].mean().items()
    )
    # each perturbation against control, and all of them at once, as the figure shows them
    compared = asked.groupby(["model", asked["perturbation"] == ALL], sort=False)
    means = compared[["accuracy", "chance"]].mean()
    depends = (means["accuracy"] > means["chance"] + INDEPENDENT_WITHIN).groupby(
        "model", sort=False
    )
    dependent, independent = (
        [readable(str(model)) for model, is_so in depends.any().items() if is_so == wanted]
        for wanted in (True, False)
    )
    margin = f"{100 * INDEPENDENT_WITHIN:.0f} percentage points"
    pairs = means[~means.index.get_level_values(1)]
    alone = ", ".join(f"{100 * accuracy:.0f} %" for accuracy in pairs["accuracy"])
    said = [
        "A classifier predicts the perturbation (or control) of a held-out "
        "cell from its basal state "
        f"with an accuracy of {found}; chance is {100 * rows['chance'].mean():.1f} %. It tells one "
        f"perturbation from control in {alone} of cells on average; chance is 50 %."
    ]
    if independent:
        said.append(
            f"At most {margin} above chance, the basal states of {', '.join(independent)} count as "
            "independent of the perturbation."
        )
    if dependent:
        said.append(
            f"More than {margin} above chance, the basal states of {', '.join(dependent)} do not "
            "count as independent: part of the effect of perturbations has stayed in them."
        )
    return [" ".join(said)]


def reproduction_in_words(tables: Path, has: Collection[str]) -> list[str]:
    """Describe how many published results were reproduced, if there are any.

    Parameters
    ----------
    tables
        Folder of the experiment's tables.
    has
        Properties of the experiment, see :mod:`samsvae.report.sections`.
    """
    return verdicts_in_words(read_table(tables / "reproduction.tsv")) if PAPER in has else []


def verdicts_in_words(reproduction: pd.DataFrame) -> list[str]:
    """Count the verdicts of the table reproduction.tsv in a sentence."""
    number = reproduction["verdict"].value_counts(sort=False)
    inside, outside = (int(number.get(verdict, 0)) for verdict in (INSIDE, OUTSIDE))
    others = [f"{n} {verdict}" for verdict, n in number.items() if verdict not in (INSIDE, OUTSIDE)]
    if inside + outside:
        sentence = (
            f"Of {inside + outside} results of the paper that were run as published, {inside} lie "
            f"inside the prediction interval and {outside} outside."
        )
    else:
        sentence = (
            f"None of the paper's {len(reproduction)} results was run as published, so their "
            "reproduction is not assessed."
        )
    return [sentence + (f" The others: {', '.join(others)}." if others else "")]
