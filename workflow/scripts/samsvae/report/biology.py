"""What perturbations do, in sentences, from the tables of an experiment."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from samsvae.biology.basal_state import ALL
from samsvae.biology.enrichment import OVER_REPRESENTATION
from samsvae.chapters import COUNTS, GENE_SETS, TRAINING
from samsvae.files import read_table
from samsvae.wording import readable, readable_set

MOST_NAMED = 4


def biology_in_words(tables: Path, has: Collection[str]) -> list[str]:
    """Say which perturbations change which genes and pathways, and which pairs interact.

    Parameters
    ----------
    tables
        Folder of the experiment's tables.
    has
        What the experiment has, see :mod:`samsvae.contents`.
    """
    if COUNTS not in has:
        return []
    said = changes_in_words(read_table(tables / "perturbations.tsv"))
    if GENE_SETS in has:
        said += pathways_in_words(read_table(tables / "pathway_agreement.tsv"))
    said += combinations_in_words(read_table(tables / "combinations.tsv"))
    if TRAINING in has:
        said += basal_in_words(read_table(tables / "basal.tsv"))
    return said


def changes_in_words(perturbations: pd.DataFrame) -> list[str]:
    """Say how many perturbations change a gene, and which ones change most."""
    changing = perturbations[perturbations["n_de"] > 0]
    sentence = (
        f"{len(changing):,} of {len(perturbations):,} perturbations change the expression of at "
        "least one gene by more than chance"
    )
    if changing.empty:
        return [f"{sentence}."]
    strongest = ", ".join(
        f"{row['perturbation']} ({row['n_de']:,})"
        for _, row in changing.head(MOST_NAMED).iterrows()
    )
    return [f"{sentence}; most genes are changed by {strongest}."]


def pathways_in_words(agreement: pd.DataFrame) -> list[str]:
    """Say which gene set is the most significant for which perturbations, and who predicts it."""
    tested = agreement[agreement["method"] == OVER_REPRESENTATION]
    known = tested.dropna(subset="top_observed")
    if known.empty:
        return ["No gene set is significantly over-represented among the genes that change most."]
    first = known[known["model"] == known["model"].iloc[0]]
    groups = first.groupby("top_observed", sort=False)["perturbation"].agg(list)
    named = "; ".join(
        f"{readable_set(str(name))} ({_listed(members)})"
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
        f"The most over-represented gene sets among the genes that change most: {named}.",
        f"Predicted effects lead to the same gene set: {predicted}.",
    ]


def combinations_in_words(combinations: pd.DataFrame) -> list[str]:
    """Say how many combinations are more, or less, than the sum of their parts."""
    if combinations.empty:
        return []
    first = combinations[combinations["model"] == combinations["model"].iloc[0]]
    departing = first[first["n_departing"] > 0].sort_values("n_departing", ascending=False)
    sentence = (
        f"{len(departing):,} of {len(first):,} combinations depart from the sum of their parts on "
        "at least one gene"
    )
    if departing.empty:
        return [f"{sentence}, as far as these cells can tell."]
    row = departing.iloc[0]
    return [f"{sentence}, {row['perturbation']} most of all ({row['departing_genes']})."]


def basal_in_words(basal: pd.DataFrame) -> list[str]:
    """Say how often a classifier reads perturbations off basal states meant to be free of them."""
    asked = basal[(basal["state"] == "basal") & (basal["labels"] == "true")]
    rows = asked[asked["claimed"].astype(bool) & (asked["perturbation"] == ALL)]
    if rows.empty:
        return []
    found = ", ".join(
        f"{100 * accuracy:.1f} % by {readable(str(model))}"
        for model, accuracy in rows.groupby("model", sort=False)["accuracy"].mean().items()
    )
    return [
        "From the basal state of a held-out cell a classifier names its perturbation, or control, "
        f"correctly in {found}; chance is {100 * rows['chance'].mean():.1f} %."
    ]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown
