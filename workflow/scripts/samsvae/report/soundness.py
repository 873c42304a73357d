"""Sentences on the quality of a screen: hits, calibration, targets, guides, batches and depth."""

from collections.abc import Collection
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy import stats

from samsvae.biology import BATCH_PVALUE, BATCH_VARIANCE
from samsvae.biology.failed_guides import WEAK, JudgedGuides, judge_guides
from samsvae.figures import minus
from samsvae.report.sections import BATCHES, CONTEXTS, COUNTS, GUIDES, MARGINAL, REFERENCES
from samsvae.report.verdict import MOST_NAMED, MOST_SOUGHT, counted, some_of
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
        guides_in_words(read_table(tables / "guides.tsv"), kind) if GUIDES in has else ("", ""),
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
            f"Nothing reproducible was found: none of {counted(len(tested), 'perturbations')} "
            f"differs from "
            f"{REFERENCES[marginal]} ({test}). Similarities, pathways and comparisons of models "
            "describe noise.",
            "",
        )
    strongest = found.sort_values("e_distance", ascending=False, kind="stable")
    named = ", ".join(strongest["perturbation"].head(MOST_NAMED))
    rest = len(tested) - len(found)
    return (
        f"{len(found):,} of {len(tested):,} perturbations are hits, which change expression as a "
        f"whole ({test}); the strongest are {named}.",
        f"{rest:,} of {len(tested):,} perturbations are not hits" if rest else "",
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
        f"{inflation:.2f}), and {false:,} group{'s have' if false != 1 else ' has'} a significant "
        "gene"
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
        f"Of {counted(len(pooled), 'measured target genes')}, {lowered:,} "
        f"{'is' if lowered == 1 else 'are'} lowered and {raised:,} raised "
        "(95 % confidence interval)"
    )
    expected = {"knockdown": lowered, "activation": raised}.get(kind or "")
    if kind == "knockout":
        sentence += "; a knock-out need not change the transcript of its target"
    missing = 0 if expected is None else len(pooled) - expected
    reservation = f"{missing:,} of {len(pooled):,} measured targets do not change as expected"
    return f"{sentence}.", reservation if missing else ""


def guides_in_words(guides: pd.DataFrame, kind: str | None) -> tuple[str, str]:
    """Describe which guides failed; sentences, and a reservation or nothing."""
    if guides.empty:
        return "No guide has enough cells to be compared with the others.", ""
    judged = judge_guides(guides)
    compared = int(guides["slope"].notna().sum())
    first = f"Of {_guides(len(guides))}, {compared:,} can be compared by the effect"
    reservations = []
    if len(judged.failed):
        first += (
            f"; {len(judged.failed):,} of these may have failed, since the effect is weak or "
            "unlike that of the other guides of the perturbation: "
            f"{odd_guides(judged.failed)}."
        )
        named = some_of(list(judged.failed["guide"].astype(str)))
        reservations.append(f"{_guides(len(judged.failed))} may have failed ({named})")
    else:
        first += ", and none is unlike the others." if compared else "."
    said = [first, *close_guides_in_words(judged)]
    low = len(judged.sound) + len(judged.uncertain)
    if low:
        said += low_targets_in_words(judged, kind)
        if kind != "knockout":  # which need not change the transcript
            said_of = f"{_guides(low)} change{'s' * (low == 1)} the target less than others"
            reservations.append(said_of)
    if len(judged.alone):
        said.append(
            f"{_guides(len(judged.alone))} could not be compared, as the only "
            f"one{'s' * (len(judged.alone) != 1)} of a perturbation."
        )
    usual = len(guides) - compared - sum(map(len, (judged.uncertain, judged.unknown, judged.alone)))
    if usual:
        said.append(
            f"With {_guides(usual)} the target changes as with the others, and too few genes "
            "change to compare effects."
        )
    if len(judged.unknown):
        said.append(
            f"{_guides(len(judged.unknown))} could not be judged: the target is not measured, and "
            "too few genes change to compare effects."
        )
    return " ".join(said), "; ".join(reservations)


def close_guides_in_words(judged: JudgedGuides) -> list[str]:
    """Describe guides whose effect is hardly strong enough."""
    if judged.close.empty:
        return []
    named = [
        f"{row['guide']} ({row['slope']:.2f})"
        for row in judged.close.sort_values("slope", kind="stable").to_dict("records")
    ]
    return [
        f"Also look at guides with hardly more than {WEAK:g} of the effect of the other guides: "
        f"{some_of(named)}."
    ]


def low_targets_in_words(judged: JudgedGuides, kind: str | None) -> list[str]:
    """Describe guides whose target changes less, by whether their effect is known."""
    said = []
    sound = judged.sound.drop(judged.close.index, errors="ignore")
    if len(sound):
        said.append(
            f"With {_names(sound)} the target changes less, but the effect is that of the "
            "other guides."
        )
    if len(judged.uncertain):
        transcript = (
            "; a knock-out need not lower the transcript of its target"
            if kind == "knockout"
            else ""
        )
        said.append(
            f"With {_names(judged.uncertain)} the target changes less, and too few genes change "
            f"to compare effects{transcript}."
        )
    return said


def _guides(number: int) -> str:
    return f"{number:,} guide{'s' * (number != 1)}"


def _names(guides: pd.DataFrame) -> str:
    return some_of(list(guides["guide"].astype(str)), MOST_SOUGHT)


def odd_guides(odd: pd.DataFrame) -> str:
    """List odd guides by the reason, the most frequent first."""
    by_reason = odd.groupby("reason", sort=False)["guide"].agg(lambda own: list(own.astype(str)))
    order = by_reason.map(len).sort_values(ascending=False, kind="stable").index
    return "; ".join(f"{some_of(by_reason[one], MOST_SOUGHT)} ({one})" for one in order)


LARGEST_IMBALANCE = 0.1  # of the fraction of cells in a batch
BATCH_FDR = 0.05  # of genes that differ between batches


def batches_in_words(
    batches: pd.DataFrame, effects: Path, marginal: bool = False
) -> tuple[str, str]:
    """Describe differences and balance of batches; sentences, and a reservation or nothing.

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
    is_unbalanced = difference.max() > LARGEST_IMBALANCE
    how = "unbalanced by up to" if is_unbalanced else "balanced to within"
    points = f"{100 * difference.max():.0f} percentage points"
    sentence = (
        f"Batches and perturbations are {how} {points}: {100 * largest['fraction']:.0f} % of the "
        f"cells of {largest['perturbation']} are in batch {largest['batch']}, and "
        f"{100 * largest['control_fraction']:.0f} % of {REFERENCES[marginal]}"
    )
    if left_out.sum():
        sentence += (
            f"; {counted(left_out.sum(), 'cells')} {'is' if left_out.sum() == 1 else 'are'} in "
            f"batches without enough {REFERENCES[marginal]}"
        )
    shifts, remedy = batch_shifts_in_words(effects)
    confounded = "effects that ignore batches are confounded"
    reservation = f"batches are unbalanced by up to {points}{remedy}" if remedy else confounded
    said = " ".join(filter(None, [batch_differences_in_words(effects), f"{sentence}.", shifts]))
    return said, reservation if is_unbalanced else ""


def batch_differences_in_words(path: Path) -> str:
    """Describe how much the control cells of batches differ; empty where this is unknown.

    Parameters
    ----------
    path
        The file screen_effects.h5ad.
    """
    with h5py.File(path) as file:
        genes = anndata.io.read_elem(file["var"])
    if BATCH_VARIANCE not in genes:
        return ""
    tested = genes.dropna(subset=[BATCH_VARIANCE])
    if tested.empty:
        return ""
    differ = (stats.false_discovery_control(tested[BATCH_PVALUE]) < BATCH_FDR).sum()
    variance = tested[BATCH_VARIANCE]
    if not differ:
        return (
            f"No batch effect is detected: none of {len(tested):,} genes differs between the "
            f"control cells of batches (false discovery rate {100 * BATCH_FDR:.0f} %)."
        )
    return (
        f"There is a batch effect: among control cells, {differ:,} of {len(tested):,} genes differ "
        f"between batches (false discovery rate {100 * BATCH_FDR:.0f} %). Batches explain "
        f"{100 * variance.mean():.1f} % of the variance of a gene on average, and at most "
        f"{100 * variance.max():.0f} % ({variance.idxmax()})."
    )


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
    moved = (
        f" and, if ignored, would move {n_shifted:,} of {n_effects:,} effects" if n_shifted else ""
    )
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
    depend = f"depend{'s' * (len(differ) == 1)} on the context"
    return f"{sentence}: {named}.", f"{counted(len(differ), 'perturbations')} {depend}"


def depth_in_words(hits: pd.DataFrame, marginal: bool = False) -> tuple[str, str]:
    """Describe perturbations of other depth than control cells; a sentence, and a reservation."""
    deep = hits[hits["depth_difference"].astype(bool)]
    if deep.empty:
        return "", ""
    named = some_of(
        [f"{row['perturbation']} ({row['depth_ratio']:.2f})" for _, row in deep.iterrows()]
    )
    return (
        f"The median library size of {counted(len(deep), 'perturbations')} differs by more than a "
        f"quarter from that of {REFERENCES[marginal]}: {named}.",
        f"{counted(len(deep), 'perturbations')} differ{'s' * (len(deep) == 1)} in depth",
    )


def composition_in_words(hits: pd.DataFrame) -> tuple[str, str]:
    """Describe perturbations by which one gene shifts all others; a sentence, and a reservation."""
    shifted = hits.dropna(subset="composition_gene")
    if shifted.empty:
        return "", ""
    named = some_of(
        [
            f"{row['perturbation']} ({row['composition_gene']}, others "
            + minus(f"{row['common_shift']:+.2f})")
            for _, row in shifted.iterrows()
        ]
    )
    number = counted(len(shifted), "perturbations")
    return (
        f"With {number} one gene changes its fraction of the counts so much that most others "
        f"shift (log2); this is composition, not regulation: {named}.",
        f"{number} change{'s' * (len(shifted) == 1)} the composition of counts",
    )
