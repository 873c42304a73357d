"""Sentences on the quality of a screen: hits, calibration, targets, guides, batches and depth."""

from collections.abc import Collection
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd

from samsvae.figures import minus
from samsvae.report.sections import BATCHES, CONTEXTS, COUNTS, GUIDES, MARGINAL
from samsvae.report.verdict import MOST_NAMED, MOST_SOUGHT, some_of
from samsvae.runtime.files import read_table


def quality_in_words(tables: Path, has: Collection[str], kind: str | None, fdr: float) -> list[str]:
    """Describe whether a screen is sound, and with which reservations it can be used.

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
    """
    if COUNTS not in has:
        return []
    hits = read_table(tables / "hits.tsv")
    marginal = MARGINAL in has
    found = [
        hits_in_words(hits, fdr, marginal),
        null_in_words(read_table(tables / "null_calibration.tsv"), marginal),
        targets_in_words(read_table(tables / "knock_down.tsv"), kind),
        guides_in_words(read_table(tables / "guides.tsv")) if GUIDES in has else ("", ""),
        batches_in_words(
            read_table(tables / "batches.tsv"), tables.parent / "screen_effects.h5ad", marginal
        )
        if BATCHES in has
        else ("", ""),
        contexts_in_words(read_table(tables / "contexts.tsv")) if CONTEXTS in has else ("", ""),
        depth_in_words(hits, marginal),
        composition_in_words(hits),
    ]
    reservations = [reservation for _, reservation in found if reservation]
    verdict = "The screen is usable"
    if reservations:
        verdict += f", with these reservations: {'; '.join(reservations)}"
    if not hits["is_hit"].any():
        verdict = "The screen cannot tell models apart, since there is no effect to predict"
    return [*(said for said, _ in found if said), f"{verdict}."]


def reference(marginal: bool) -> str:
    """Name the cells that perturbations are compared with."""
    return "other cells" if marginal else "control cells"


def hits_in_words(hits: pd.DataFrame, fdr: float, marginal: bool = False) -> tuple[str, str]:
    """Describe which perturbations have an effect; a sentence, and a reservation or nothing."""
    tested = hits.dropna(subset="pvalue")
    if tested.empty:
        return (
            "No perturbation could be tested: each has fewer than two cells, or none in a batch "
            "with enough control cells.",
            "",
        )
    found = tested[tested["is_hit"]]
    test = f"permutation test of the E-distance, false discovery rate {100 * fdr:g} %"
    if found.empty:
        return (
            f"Nothing reproducible was found: none of {len(tested):,} perturbations differs from "
            f"{reference(marginal)} ({test}). Similarities, pathways and comparisons of models "
            "describe noise.",
            "",
        )
    named = ", ".join(found["perturbation"].head(MOST_NAMED))
    rest = len(tested) - len(found)
    return (
        f"{len(found):,} of {len(tested):,} perturbations change expression ({test}); the "
        f"strongest are {named}.",
        f"{rest:,} of {len(tested):,} perturbations have no detectable effect" if rest else "",
    )


LARGEST_INFLATION = 1.2  # of the median chi-square statistic of control cells
LARGEST_FRACTION = 0.07  # of p-values below 0.05 of control cells


def null_in_words(null: pd.DataFrame, marginal: bool = False) -> tuple[str, str]:
    """Describe the calibration of tests; a sentence, and a reservation or nothing."""
    if null.empty:
        return "There are too few control cells to tell whether tests are calibrated.", ""
    fraction, inflation = null["fraction_p05"].median(), null["lambda"].median()
    false = int((null["n_significant"] > 0).sum())
    groups = "cells without a common target" if marginal else "control cells"
    sentence = (
        f"In {len(null):,} groups of {groups} tested like perturbations, "
        f"{100 * fraction:.1f} % of p-values are below 0.05 (expected: 5 %; genomic inflation "
        f"{inflation:.2f}), and {false:,} groups have a significant gene"
    )
    if inflation <= LARGEST_INFLATION and fraction <= LARGEST_FRACTION:
        return f"{sentence}: the tests are calibrated.", ""
    return (
        f"{sentence}: the tests are inflated. Where cells with a guide are deeper, or batches "
        "are not named, evaluation.depth_bins and batch_column help.",
        "p-values are too small",
    )


def targets_in_words(changes: pd.DataFrame, kind: str | None) -> tuple[str, str]:
    """Describe the change of target genes; a sentence, and a reservation or nothing."""
    pooled = changes[changes["guide"].isna() | (changes["guide"] == "")]
    if pooled.empty:
        return "No target gene is measured.", ""
    lowered = int((pooled["high"] < 0).sum())
    raised = int((pooled["low"] > 0).sum())
    sentence = (
        f"Of {len(pooled):,} measured target genes, {lowered:,} are lowered and {raised:,} raised "
        "(95 % confidence interval)"
    )
    expected = {"knockdown": lowered, "activation": raised}.get(kind or "")
    if kind == "knockout":
        sentence += "; a knock-out need not lower the transcript of its target"
    missing = 0 if expected is None else len(pooled) - expected
    reservation = f"{missing:,} of {len(pooled):,} measured targets do not change as expected"
    return f"{sentence}.", reservation if missing else ""


def guides_in_words(guides: pd.DataFrame) -> tuple[str, str]:
    """Describe the agreement of guides; a sentence, and a reservation or nothing."""
    odd = guides[guides["odd"].astype(bool)]
    if guides.empty or odd.empty:
        return f"None of {len(guides):,} guides is odd beside the others of its perturbation.", ""
    return (
        f"{len(odd):,} of {len(guides):,} guides are odd beside the others of their perturbation: "
        f"{odd_guides(odd)}.",
        f"{len(odd):,} odd guides",
    )


def odd_guides(odd: pd.DataFrame) -> str:
    """List odd guides by the reason, the most frequent first."""
    by_reason = odd.groupby("reason", sort=False)["guide"].agg(lambda own: list(own.astype(str)))
    order = by_reason.map(len).sort_values(ascending=False, kind="stable").index
    return "; ".join(f"{some_of(by_reason[one], MOST_SOUGHT)} ({one})" for one in order)


LARGEST_IMBALANCE = 0.1  # of the fraction of cells in a batch


def batches_in_words(
    batches: pd.DataFrame, effects: Path, marginal: bool = False
) -> tuple[str, str]:
    """Describe balance and effects of batches; two sentences, and a reservation or nothing.

    Parameters
    ----------
    batches
        The table batches.tsv.
    effects
        The file screen_effects.h5ad.
    marginal
        Whether effects are marginal.
    """
    difference = (batches["fraction"] - batches["control_fraction"]).abs()
    largest = batches.loc[difference.idxmax()]
    left_out = batches.loc[~batches["compared"].astype(bool) & (batches["n_cells"] > 0), "n_cells"]
    sentence = (
        f"Batches and perturbations are balanced to within {100 * difference.max():.0f} percentage "
        f"points: {100 * largest['fraction']:.0f} % of the cells of {largest['perturbation']} are "
        f"in batch {largest['batch']}, and {100 * largest['control_fraction']:.0f} % of "
        f"{reference(marginal)}"
    )
    if left_out.sum():
        sentence += (
            f"; {left_out.sum():,} cells are in batches without enough {reference(marginal)}"
        )
    shifts, remedy = batch_shifts_in_words(effects)
    confounded = "effects that ignore batches are confounded"
    reservation = f"batches are unbalanced{remedy}" if remedy else confounded
    is_unbalanced = difference.max() > LARGEST_IMBALANCE
    return " ".join(filter(None, [f"{sentence}.", shifts])), reservation if is_unbalanced else ""


LARGEST_SHIFT = 2  # standard errors of an effect
PERTURBATIONS_AT_ONCE = 500


def batch_shifts_in_words(path: Path) -> tuple[str, str]:
    """Describe how effects within batches differ from those that ignore batches.

    Parameters
    ----------
    path
        The file screen_effects.h5ad, which is read in parts.

    Returns
    -------
    tuple of str
        A sentence, and what follows if batches are unbalanced; the first is empty without effects
        within batches, the second if those in use are not within batches.
    """
    with h5py.File(path) as file:
        layers = file["layers"]
        if "ate_stratified" not in layers:
            return "", ""
        perturbations, genes = (anndata.io.read_elem(file[axis]) for axis in ("obs", "var"))
        n_effects = n_shifted = 0
        largest, example = float(LARGEST_SHIFT), ""
        for start in range(0, len(perturbations), PERTURBATIONS_AT_ONCE):
            rows = slice(start, start + PERTURBATIONS_AT_ONCE)
            plain, within, error = (
                layers[name][rows]
                for name in ("ate", "ate_stratified", "standard_error_stratified")
            )
            known = np.isfinite(plain) & np.isfinite(within) & (error > 0)
            shift = np.divide(np.abs(plain - within), error, out=np.zeros_like(error), where=known)
            n_effects += int(known.sum())
            n_shifted += int((shift > LARGEST_SHIFT).sum())
            if shift.max() > largest:
                largest = float(shift.max())
                row, gene = np.unravel_index(shift.argmax(), shift.shape)
                example = (
                    f", most that of {perturbations.index[start + row]} on {genes.index[gene]} ("
                    + minus(f"{plain[row, gene]:+.2f} instead of {within[row, gene]:+.2f})")
                )
    said = (
        f"Ignoring batches would move {n_shifted:,} of {n_effects:,} effects by more "
        f"than two standard errors{example}."
    )
    if not perturbations["is_stratified"].any():
        return said, ""
    moved = f" and would move {n_shifted:,} effects" if n_shifted else ""
    return said, f"{moved}, so effects are compared within them"


def contexts_in_words(contexts: pd.DataFrame) -> tuple[str, str]:
    """Describe how effects differ between contexts; a sentence, and a reservation or nothing."""
    number = contexts.groupby("perturbation", sort=False)["n_heterogeneous"].first()
    differ = number[number > 0].sort_values(ascending=False, kind="stable")
    sentence = (
        f"Effects of {len(differ):,} of {len(number):,} perturbations differ between the "
        f"{contexts['context'].nunique():,} contexts in at least one gene"
    )
    if differ.empty:
        return f"{sentence}.", ""
    named = some_of([f"{name} ({genes:,})" for name, genes in differ.items()])
    return f"{sentence}: {named}.", f"{len(differ):,} perturbations depend on the context"


def depth_in_words(hits: pd.DataFrame, marginal: bool = False) -> tuple[str, str]:
    """Describe perturbations of other depth than control cells; a sentence, and a reservation."""
    deep = hits[hits["depth_difference"].astype(bool)]
    if deep.empty:
        return "", ""
    named = some_of(
        [f"{row['perturbation']} ({row['depth_ratio']:.2f})" for _, row in deep.iterrows()]
    )
    return (
        f"The median library size of {len(deep):,} perturbations differs by more than a quarter "
        f"from that of {reference(marginal)}: {named}.",
        f"{len(deep):,} perturbations differ in depth",
    )


def composition_in_words(hits: pd.DataFrame) -> tuple[str, str]:
    """Describe perturbations by which one gene shifts all others; a sentence, and a reservation."""
    shifted = hits.dropna(subset="composition_gene")
    if shifted.empty:
        return "", ""
    named = some_of(
        [
            f"{row['perturbation']} ({row['composition_gene']}, others "
            f"{row['common_shift']:+.2f})".replace("-", "−")
            for _, row in shifted.iterrows()
        ]
    )
    return (
        f"With {len(shifted):,} perturbations one gene changes its share of the counts so much "
        f"that most others shift (log2); this is composition, not regulation: {named}.",
        f"{len(shifted):,} perturbations change the composition of counts",
    )
