"""Verdicts on guides, from the table guides.tsv.

A guide failed if its effect is weak, or unlike that of the other guides of its perturbation. The
transcript of the target alone does not decide: a knock-out need not lower it.
"""

from typing import NamedTuple

import pandas as pd

LOW_CONCORDANCE, WEAK_EFFECT = "low concordance", "weak effect"  # reasons why a guide is odd
WEAK_KNOCK_DOWN = "weak knock-down"
WEAK = 0.5  # of the effect, or change of the target, of the other guides: a guide below is odd
CLOSE = 0.6  # a guide below is close to that limit


class JudgedGuides(NamedTuple):
    """Rows of guides.tsv by what they tell.

    Attributes
    ----------
    failed
        The effect is weak, or unlike that of the other guides of the perturbation.
    sound
        The target changes less, but the effect does not tell them from the other guides.
    uncertain
        The target changes less, and too few genes change to compare effects.
    unknown
        Neither the target nor enough genes can be compared.
    close
        The effect is hardly stronger than that of a guide that failed.
    alone
        The only guide of its perturbation.
    """

    failed: pd.DataFrame
    sound: pd.DataFrame
    uncertain: pd.DataFrame
    unknown: pd.DataFrame
    close: pd.DataFrame
    alone: pd.DataFrame


def judge_guides(guides: pd.DataFrame) -> JudgedGuides:
    """Divide guides by whether their effect, or only the change of their target, is odd."""
    odd = guides["odd"].astype(bool)
    by_effect = odd & guides["reason"].fillna("").str.contains(f"{LOW_CONCORDANCE}|{WEAK_EFFECT}")
    compared = guides["slope"].notna()
    alone = ~compared & ~guides["perturbation"].duplicated(keep=False)
    return JudgedGuides(
        guides[by_effect],
        guides[odd & ~by_effect & compared],
        guides[odd & ~by_effect & ~compared],
        guides[~odd & ~compared & ~alone & guides["knock_down"].isna()],
        guides[~by_effect & (guides["slope"] < CLOSE)],
        guides[alone],
    )
