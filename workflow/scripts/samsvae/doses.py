"""Doses: how a label carries them, and how a file's column of doses is read.

A part of a canonical label is a perturbation, ``GENE`` at dose 1 and ``GENE@0.5`` at another.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from samsvae.errors import InputError

MARK = "@"
DOSED = re.compile(rf"(.+){MARK}([0-9]+(?:\.[0-9]+)?)", re.DOTALL)


def with_dose(name: str, dose: float) -> str:
    """Name a perturbation at a dose, to the precision of float32; dose 1 goes without saying."""
    # positional, since the exponent of 1e+20 holds the sign that joins combinations
    text = np.format_float_positional(np.float32(dose), trim="-")
    return name if text == "1" else f"{name}{MARK}{text}"


def split_dose(part: str) -> tuple[str, float]:
    """Split a part of a canonical label into its perturbation and dose."""
    dosed = DOSED.fullmatch(part)
    return (dosed[1], float(dosed[2])) if dosed else (part, 1.0)


def check_undosed(label: str, part: str, where: str) -> None:
    """Refuse a part of a source's label that would read as a dose.

    Raises
    ------
    InputError
        Naming the label; other uses of ``@``, as in ``HOXA@``, pass.
    """
    if DOSED.fullmatch(part):
        raise InputError(
            f"{where}: the label {label!r} would be read as a dose, since {MARK!r} and a number "
            "mark one. Rename it in the file; doses belong in a column of their own, "
            "'dose_column'."
        )


def read_doses(
    value: Any, label: str, targets: Sequence[str | None], delimiter: str | None, where: str
) -> dict[str, float]:
    """Read a cell's doses.

    Parameters
    ----------
    value
        As in the column: a number, or numbers joined by `delimiter`; not used for a control.
    label
        The cell's label in the source, for messages.
    targets
        Gene of each part of the label, in its order; None for a control.
    delimiter
        What joins the genes of a combination; None if nothing does.
    where
        File and column, for messages.

    Returns
    -------
    dict of float
        Dose by perturbation; none for a control cell.

    Raises
    ------
    InputError
        If there is no dose, there are too few or too many, one is no positive finite number (in
        float32), or a gene has two.
    """
    if not any(targets):
        return {}
    numbers = f"{len(targets)} numbers joined by {delimiter!r}" if len(targets) > 1 else "a number"
    remedy = f"Give each cell of {label!r} {numbers} above 0; only control cells need no dose."
    if pd.isna(value):
        raise InputError(f"{where}: a cell of {label!r} has no dose. {remedy}")
    texts = str(value).split(delimiter) if len(targets) > 1 else [str(value)]
    if len(texts) != len(targets):
        raise InputError(
            f"{where}: the value {str(value)!r} holds {len(texts)} dose(s), but the label "
            f"{label!r} {len(targets)} perturbations. {remedy}"
        )
    doses: dict[str, float] = {}
    for target, text in zip(targets, texts, strict=True):
        if target is None:
            continue
        dose = _dose(text, f"{where}: the dose {text.strip()!r} of {label!r}", remedy)
        if doses.setdefault(target, dose) != dose:
            raise InputError(
                f"{where}: the value {str(value)!r} gives {target!r} of {label!r} two doses. "
                "Name each gene of a combination once."
            )
    return doses


def _dose(text: str, what: str, remedy: str) -> float:
    try:
        with np.errstate(over="ignore", under="ignore"):
            dose = float(np.float32(float(text)))
    except ValueError:
        raise InputError(f"{what} is not a number. {remedy}") from None
    if not np.isfinite(dose):
        raise InputError(f"{what} is not a finite number. {remedy}")
    if dose <= 0:
        raise InputError(
            f"{what} is not above 0. {remedy} A cell that received nothing is a control cell."
        )
    return dose
