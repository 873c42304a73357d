"""How well differential expression is predicted, apart for weak and for strong perturbations.

A screen may have a few perturbations that change hundreds of genes and many that change one or
two, or were seen in few cells. An average over all of them hides how good the predictions of
the strong ones are, or how bad those of the weak ones.
"""

import numpy as np
import pandas as pd

ALL = "all"
LOWER_LIMITS = {
    "n_de": (1, 3, 10, 30, 100, 300),  # differentially expressed genes
    "n_held_out": (0, 25, 50, 100, 200, 400),  # held-out cells
}
RUN = ["split", "model", "seed"]
COLUMNS = [
    *RUN, "stratified_by", "stratum", "lower", "metric", "n_perturbations", "median",
    "lower_quartile", "upper_quartile",
]  # fmt: skip


def scores_by_strength(comparison: pd.DataFrame) -> pd.DataFrame:
    """Average the scores of perturbations of like strength.

    Parameters
    ----------
    comparison
        The table de_comparison.tsv: a row per run and perturbation, with ``n_de``,
        ``n_held_out`` and scores.

    Returns
    -------
    DataFrame
        For each run, score and stratum the median and the quartiles over its perturbations with
        at least one differentially expressed gene. Strata are of the number of such genes
        (``n_de``), of the number of held-out cells (``n_held_out``), or all perturbations
        (``all``); ``lower`` is the least number of a stratum.
    """
    table = comparison[comparison["n_de"] > 0]
    scores = [name for name in table if name not in (*RUN, "perturbation", *LOWER_LIMITS)]
    parts = []
    for by, limits in {ALL: (0,), **LOWER_LIMITS}.items():
        number = np.zeros(len(table), dtype=int) if by == ALL else table[by].to_numpy()
        stratum = np.searchsorted(limits, number, side="right") - 1
        long = table[[*RUN, *scores]].assign(place=stratum).melt([*RUN, "place"], scores, "metric")
        groups = long.dropna(subset="value").groupby([*RUN, "place", "metric"], sort=False)["value"]
        summary = groups.agg(n_perturbations="size", median="median")
        summary["lower_quartile"] = groups.quantile(0.25)
        summary["upper_quartile"] = groups.quantile(0.75)
        summary = summary.reset_index().assign(stratified_by=by)
        summary["lower"] = np.asarray(limits)[summary["place"]]
        names = [ALL] if by == ALL else stratum_names(limits)
        summary["stratum"] = np.asarray(names, dtype=object)[summary["place"]]
        parts.append(summary.sort_values([*RUN, "metric", "place"], kind="stable"))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def stratum_names(limits: tuple[int, ...]) -> list[str]:
    """Name strata by their least and largest number, as in ``3–9`` and ``300+``."""
    ends = [limit - 1 for limit in limits[1:]]
    names = [f"{a}–{b}" if a < b else f"{a}" for a, b in zip(limits, ends, strict=False)]
    return [*names, f"{limits[-1]}+"]
