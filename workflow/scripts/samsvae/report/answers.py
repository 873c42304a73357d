"""The report's first screen: five questions about an experiment, each with a short answer."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from samsvae.biology.enrichment import OVER_REPRESENTATION
from samsvae.biology.failed_guides import judge_guides
from samsvae.evaluation.metrics import HELD_OUT
from samsvae.evaluation.summary import BEST, NOT_DIFFERENT, by_fraction, scope_of_summary
from samsvae.figures import minus, readable, readable_set
from samsvae.report.sections import BATCHES, COUNTS, GENE_SETS, GUIDES, MASKS, TRAINING
from samsvae.report.sentences import escaped_in_words, judged_in_words, pathways_in_words
from samsvae.report.soundness import (
    batch_differences_in_words,
    close_guides_in_words,
    low_targets_in_words,
    odd_guides,
    quality_in_words,
)
from samsvae.report.verdict import MOST_SOUGHT, at_start, counted, listed_words, some_of
from samsvae.runtime.files import read_table
from samsvae.screen.labels import components

SOUND = "Is the screen sound?"
EFFECTS = "What do the perturbations do?"
MECHANISMS = "Which mechanisms do they share?"
MODELS = "Which model predicts best?"
NEXT = "What to do next?"
MOST_DESCRIBED = 3  # perturbations whose genes are named
MUCH_ALIKE = 0.7  # correlation of observed effects
MOST_GENES = 3
FEW_RESPONDERS = 0.5

Answers = list[tuple[str, list[str]]]


def five_answers(
    tables: Path,
    has: Collection[str],
    kind: str | None,
    fdr: float,
    models: Sequence[str],
    trained: Collection[str],
    split: str,
) -> Answers:
    """Answer the questions with which a reader opens the report.

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
    models, trained
        Models of the experiment, and those of them that are trained.
    split
        Kind of the split.

    Returns
    -------
    list of (str, list of str)
        Question and sentences; a question that the experiment cannot answer is not there.
    """
    summary = read_table(tables / "summary.tsv")
    best, judged = list(_best_models(summary)), judged_in_words(split)
    answers = [(MODELS, best)]
    if COUNTS in has:
        hits = read_table(tables / "hits.tsv")
        answers = [
            (SOUND, list(_soundness(tables, has, kind, fdr))),
            (EFFECTS, list(_effects(tables, has, hits))),
            (MECHANISMS, list(_mechanisms(tables, has, models, fdr))),
            (MODELS, [*_ranking(read_table(tables / "ranking.tsv"), trained), *best, judged]),
            (NEXT, list(_next_steps(tables, has, kind, hits))),
        ]
    return [(question, said) for question, said in answers if said]


def _soundness(tables: Path, has: Collection[str], kind: str | None, fdr: float) -> Iterator[str]:
    yield quality_in_words(tables, has, kind, fdr)[-1]
    warnings = read_table(tables / "warnings.tsv")
    if len(warnings):
        names = some_of(list(warnings["name"].unique()), MOST_SOUGHT)
        yield f"Before training, the check warned of: {names}."
    if BATCHES in has and (
        differences := batch_differences_in_words(tables.parent / "screen_effects.h5ad")
    ):
        yield differences


def _effects(tables: Path, has: Collection[str], hits: pd.DataFrame) -> Iterator[str]:
    perturbations = read_table(tables / "perturbations.tsv")
    tested = hits.dropna(subset="pvalue")
    found = tested[tested["is_hit"].astype(bool)]
    changing = int((found["n_de"] > 0).sum())
    others = int((hits["n_de"] > 0).sum()) - changing
    names = list(found["perturbation"].astype(str))
    yield (
        f"{len(found):,} of {len(tested):,} perturbations are hits: they change expression as a "
        f"whole{f' ({some_of(names, MOST_SOUGHT)})' if names else ''}. {changing:,} of them and "
        f"{others:,} other{'s' * (others != 1)} change at least one gene significantly."
    )
    is_hit = perturbations["perturbation"].astype(str).isin(names)
    yield from _described(perturbations[is_hit], tables)
    if TRAINING in has and (said := escaped_in_words(read_table(tables / "responders.tsv"))):
        yield said


def _described(perturbations: pd.DataFrame, tables: Path) -> Iterator[str]:
    """Name the genes of the strongest perturbations, and those whose effects resemble theirs."""
    pairs = pd.read_parquet(
        tables / "similarity.parquet",
        columns=["first", "second", "similarity"],
        filters=[("kind", "==", "observed"), ("similarity", ">", MUCH_ALIKE)],
    )
    ends = pairs[["first", "second"]].astype(str)
    left = perturbations[perturbations["n_de"] > 0]
    for _ in range(MOST_DESCRIBED):
        if left.empty:
            return
        row = left.iloc[0]
        name = str(row["perturbation"])
        partners = {*ends.loc[ends["first"] == name, "second"]}
        partners |= {*ends.loc[ends["second"] == name, "first"]}
        alike = [one for one in left["perturbation"].astype(str)[1:] if one in partners]
        parts = [
            f"{', '.join(genes)} {verb}{'s' * (len(genes) == 1)}"
            for verb, column in (("rise", "raised"), ("fall", "lowered"))
            if (genes := _genes(row.get(column)))
        ]
        if parts:
            sentence = f"With {name} ({counted(row['n_de'], 'genes')}) {' and '.join(parts)}"
            if alike:
                sentence += f"; much the same effect (r > {MUCH_ALIKE:g}): {some_of(alike)}"
            yield f"{sentence}."
        left = left[~left["perturbation"].astype(str).isin([name, *alike])]


def _genes(text: object) -> list[str]:
    """Read the first genes of a list such as ``IRF1 +1.20, STAT1 +0.90``."""
    listed = str(text).split(", ") if isinstance(text, str) and text else []
    return [one.split(" ")[0] for one in listed[:MOST_GENES]]


def _mechanisms(
    tables: Path, has: Collection[str], models: Sequence[str], fdr: float
) -> Iterator[str]:
    if GENE_SETS in has:
        yield pathways_in_words(read_table(tables / "pathway_agreement.tsv"))[0]
    if not {TRAINING, MASKS} <= set(has):
        return
    factors = read_table(tables / "factors.tsv")
    shared = factors[factors["n_perturbations"] > 1] if len(factors) else factors
    if shared.empty:
        return
    model = next(name for name in models if name in set(shared["model"]))
    own = shared[shared["model"] == model]
    first = own[(own["split"] == own["split"].iloc[0]) & (own["seed"] == own["seed"].iloc[0])]
    largest = first.sort_values("n_perturbations", ascending=False, kind="stable").iloc[0]
    members = str(largest["perturbations"]).split(";")
    name = _set_of_factor(tables, largest, fdr) if GENE_SETS in has else ""
    yield (
        f"{at_start(readable(model))} finds {counted(len(first), 'latent factors')} that several "
        f"perturbations share; the largest is moved by {some_of(members, MOST_SOUGHT)}"
        f"{f' ({readable_set(name)})' if name else ''}."
    )
    if name:
        yield from _both_views(_with_set(tables, name, fdr), members)


def _with_set(tables: Path, name: str, fdr: float) -> list[str]:
    """List the perturbations in whose observed effects a gene set is over-represented."""
    tested = read_table(tables / "enrichment.tsv")
    found = tested[
        (tested["model"] == "observed")
        & (tested["method"] == OVER_REPRESENTATION)
        & (tested["set"] == name)
        & (tested["fdr"] < fdr)
    ]
    return list(dict.fromkeys(found["perturbation"].astype(str)))


def _both_views(of_set: Sequence[str], of_factor: Sequence[str]) -> Iterator[str]:
    """Name the perturbations that share a gene set and the factor in which it is enriched.

    Parameters
    ----------
    of_set
        Perturbations, and combinations of them.
    of_factor
        Perturbations; the combinations that contain them move the factor, too.
    """
    both = [name for name in of_factor if name in of_set]
    if not both:
        return
    sentence = f"Gene set and factor agree on {some_of(both, MOST_SOUGHT)}"
    without_set = [name for name in of_factor if name not in of_set]
    if without_set:
        verb = "moves" if len(without_set) == 1 else "move"
        sentence += f"; {some_of(without_set)} {verb} the factor without that gene set"
    moved = set(of_factor)
    without_factor = [name for name in of_set if not moved & {name, *components(name)}]
    if without_factor:
        verb = "has" if len(without_factor) == 1 else "have"
        sentence += f"; {some_of(without_factor)} {verb} the gene set without the factor"
    yield f"{sentence}."


def _set_of_factor(tables: Path, factor: "pd.Series[object]", fdr: float) -> str:
    """Name the gene set most enriched among the genes of a factor; empty if none is."""
    sets = read_table(tables / "factor_enrichment.tsv")
    keys = ["split", "model", "seed", "dimension"]
    own = sets[(sets[keys] == factor[keys]).all(axis=1) & (sets["fdr"] < fdr)]
    if own.empty:
        return ""
    return str(own.sort_values("pvalue", kind="stable")["set"].iloc[0])


def _ranking(ranking: pd.DataFrame, trained: Collection[str]) -> Iterator[str]:
    """Name the models of highest mean score over calibrated metrics, for each condition."""
    parts = by_fraction(ranking)
    for fraction, part in parts:
        rows = part.sort_values("rank", kind="stable").to_dict("records")
        if not rows:
            continue
        best, *others = rows
        where = f"With a fraction of {fraction:g}, " if len(parts) > 1 else ""
        short = name = readable(best["model"])
        if best["model"] not in trained:
            name = f"the baseline {name}" if where else f"The baseline {name}"
        number = f"{best['n_metrics']:.0f} metric{'s' * (best['n_metrics'] != 1)}"
        sentence = (
            f"{where}{at_start(name, where)} has the highest mean score over the "
            f"{number} that can rank models here: "
            + minus(f"{best['score']:.2f}")
            + f" (0: {_reference(best)}; 1: a replicate of the measurement)."
        )
        if others:
            sentence += f" Next is {readable(others[0]['model'])} " + minus(
                f"({others[0]['score']:.2f})."
            )
        if pd.notna(best["probability_best"]) and others:
            percent = f"{100 * best['probability_best']:.0f} %"
            sentence += f" {at_start(short)} is the best in {percent} of bootstrap samples."
        yield sentence
        yield from _not_worse(short, others)
        yield from _not_better([row for row in rows if row["model"] in trained])


def _not_worse(best: str, others: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name the models whose mean score may be as high as that of the best."""
    known = [one for one in others if pd.notna(one["difference_high"])]
    if not known:
        return
    equal = [readable(str(one["model"])) for one in known if one["difference_high"] >= 0]
    if equal:
        yield (
            f"{at_start(best)} is not significantly better than {listed_words(equal)}: the "
            "95 % interval of the difference includes 0."
        )
    elif len(known) == len(others):
        yield (
            f"{at_start(best)} is significantly better than every other: the 95 % intervals "
            "of the differences exclude 0."
        )


def _not_better(trained: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Name the trained models that may predict no better than the reference, of score 0."""
    equal = [readable(str(one["model"])) for one in trained if one["low"] <= 0]
    if equal:
        yield (
            f"It is not certain that {listed_words(equal)} predict{'s' * (len(equal) == 1)} better "
            f"than {_reference(trained[0])}: the 95 % interval of the score is not above 0."
        )


def _reference(row: Mapping[str, Any]) -> str:
    """Name what has the score 0."""
    name = str(row["reference"])
    return "chance" if name == "chance" else f"the {readable(name)}"


def _best_models(summary: pd.DataFrame) -> Iterator[str]:
    """Name the best models by the agreement with held-out effects, for each condition."""
    parts = by_fraction(summary)
    for fraction, part in parts:
        asked = part[
            (part["metric"] == f"pearson{HELD_OUT}") & (part["scope"] == scope_of_summary(part))
        ].set_index("model")
        best = asked[asked["verdict"] == BEST]
        if best.empty:
            continue
        where = f"With a fraction of {fraction:g}, " if len(parts) > 1 else ""
        value = minus(f"{best['value'].iloc[0]:.2f}")
        name = at_start(readable(str(best.index[0])), where)
        sentence = f"{where}{name}: r {value} with the effects of held-out cells"
        equal = [readable(str(name)) for name in asked.index[asked["verdict"] == NOT_DIFFERENT]]
        if equal:
            yield f"{sentence}, not significantly better than {some_of(equal)}."
        elif asked["tested_over"].notna().any():
            yield f"{sentence}, significantly better than every other."
        else:
            yield f"{sentence}; without replicates, differences are not tested."


def _single_genes(silent: pd.DataFrame) -> str:
    """Name the perturbations that are not hits, but change a gene."""
    changing = silent[silent["n_de"] > 0]
    if changing.empty:
        return ""
    named = some_of([f"{row['perturbation']} ({row['n_de']:,})" for _, row in changing.iterrows()])
    return f"; single genes change with {named}"


def _detectable(silent: pd.DataFrame) -> str:
    """State the changes of a typical gene that perturbations would have been found by."""
    sizes = silent["detectable_effect"].dropna() if "detectable_effect" in silent else []
    if not len(sizes):
        return ""
    low, high = f"{min(sizes):.2f}", f"{max(sizes):.2f}"
    change = low if low == high else f"{low} to {high}"
    return f". With these cells a change of {change} (log2) in a typical gene would be found"


def _rarely_responding(responders: pd.DataFrame) -> Iterator[str]:
    """Name the guides to which significantly fewer cells respond than to their perturbation."""
    of_guide = responders["guide"].fillna("") != ""
    pooled = responders[~of_guide].set_index("perturbation")
    own = responders[of_guide].dropna(subset="high").sort_values("responders", kind="stable")
    of_all = pooled.reindex(own["perturbation"])
    few = own[own["high"].to_numpy() < of_all["low"].to_numpy()]
    if len(few):
        named = [
            f"{row['guide']} ({100 * row['responders']:.0f} % instead of "
            f"{100 * pooled.loc[row['perturbation'], 'responders']:.0f} %)"
            for row in few.to_dict("records")
        ]
        yield f"Also look at guides to which fewer cells respond: {some_of(named)}."


def _next_steps(
    tables: Path, has: Collection[str], kind: str | None, hits: pd.DataFrame
) -> Iterator[str]:
    """Suggest what the tables ask for."""
    if GUIDES in has:
        judged = judge_guides(read_table(tables / "guides.tsv"))
        if len(judged.failed):
            yield (
                "Look at the cells of guides that may have failed, and leave them out if so: "
                f"{odd_guides(judged.failed)}."
            )
        yield from close_guides_in_words(judged)
        if TRAINING in has:
            yield from _rarely_responding(read_table(tables / "responders.tsv"))
        yield from low_targets_in_words(judged, kind)
    silent = hits[hits["pvalue"].notna() & ~hits["is_hit"].astype(bool)]
    if len(silent):
        yield (
            f"Not hits: {some_of(list(silent['perturbation'].astype(str)), MOST_SOUGHT)}"
            f"{_single_genes(silent)}{_detectable(silent)}. More cells or stronger guides would "
            "tell absence from weakness."
        )
    if TRAINING in has:
        responders = read_table(tables / "responders.tsv")
        pooled = responders[responders["guide"].fillna("") == ""]
        few = pooled[pooled["responders"] < FEW_RESPONDERS]
        if len(few):
            yield (
                f"Less than half of the cells respond to "
                f"{some_of(list(few['perturbation'].astype(str)))}: compare effects among "
                "responders."
            )
    yield "Look up any perturbation or gene in the report."
