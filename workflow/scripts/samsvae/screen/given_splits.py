"""Splits that were made elsewhere: the part of each cell from a column of the screen or a table."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError
from samsvae.screen.canonical import COMPARED_WITH, has_marginal_effects
from samsvae.screen.labels import CONTROL
from samsvae.screen.splits import TEST, TRAIN, UNUSED, VAL

PART_COLUMNS = ("part", "split")  # of a table, in the order of preference
SHOWN = 5

logger = logging.getLogger(__name__)


def given_parts(screen: anndata.AnnData, given: Mapping[str, Any]) -> np.ndarray:
    """Read the split of a screen's cells from a column of it, or from a table.

    Parameters
    ----------
    screen
        Canonical screen.
    given
        As of :func:`samsvae.config.experiments.given_split`.

    Returns
    -------
    ndarray of str
        For each cell ``train``, ``val``, ``test`` or ``unused``.

    Raises
    ------
    InputError
        If there is no such column, a cell or a word is not known, a part has no cell, or no
        control cell is trained on or held out.
    """
    if "table" in given:
        where, table = f"split.table: {given['table']}", read_given_table(given["table"])
        missing = screen.obs_names.difference(table.index, sort=False)
        if len(missing):
            raise InputError(
                f"{where} has no row for {len(missing):,} of {screen.n_obs:,} cells of the screen, "
                f"for instance {', '.join(missing[:SHOWN])}. Add them; cells of no part are "
                f"{UNUSED!r}."
            )
        others = len(table) - screen.n_obs
        if others:
            logger.info("%s: %d cells that the screen does not have are ignored", where, others)
        words = table.reindex(screen.obs_names)
    else:
        where = f"split.column: {given['column']!r}"
        if given["column"] not in screen.obs:
            raise InputError(
                f"{where} is not in obs of the screen (it has: {', '.join(screen.obs)}). Name one "
                "of these, or give a table of cells (kind: from_table)."
            )
        words = screen.obs[given["column"]]
    parts = parts_of_words(words, given.get("parts"), where)
    needs_control = not has_marginal_effects(screen) or screen.uns[COMPARED_WITH] == "controls"
    _check_parts(parts, (screen.obs["perturbation"] == CONTROL).to_numpy(), needs_control, where)
    return parts


def read_given_table(path: str | Path) -> "pd.Series[str]":
    """Read a table of cells and their parts.

    Parameters
    ----------
    path
        Comma-separated if it ends in .csv (or .csv.gz), else tab-separated.

    Returns
    -------
    Series of str
        Word for the part of each cell, as written, by cell.

    Raises
    ------
    InputError
        If there is no such table, a column is missing, or a cell occurs twice.
    """
    where = f"split.table: {path}"
    separator = "," if str(path).removesuffix(".gz").endswith(".csv") else "\t"
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file. Set it to an existing table.") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{where} cannot be read as a table of columns with "
            f"{'commas' if separator == ',' else 'tabs'} between them: {str(error).strip()}"
        ) from None
    named = [column for column in PART_COLUMNS if column in table]
    if "cell" not in table or not named:
        raise InputError(
            f"{where} has the columns {', '.join(map(repr, table))}. It needs 'cell' and "
            f"{' or '.join(map(repr, PART_COLUMNS))}, separated by "
            f"{'commas' if separator == ',' else 'tabs'}."
        )
    twice = table["cell"][table["cell"].duplicated()]
    if len(twice):
        raise InputError(
            f"{where} has {len(twice):,} cell(s) more than once, for instance {twice.iloc[0]!r}. "
            "Keep one row of each."
        )
    return table.set_index("cell")[named[0]]


def parts_of_words(
    words: "pd.Series[Any]", meaning: Mapping[str, str] | None, where: str
) -> np.ndarray:
    """Translate the words of a split that was made elsewhere.

    Parameters
    ----------
    words
        Word of each cell.
    meaning
        Part by word, beside the names of the parts themselves; None if these are all words.
    where
        Source of the words, for messages.

    Returns
    -------
    ndarray of str
        ``train``, ``val``, ``test`` or ``unused``. Cells without a word are unused, and with a
        mapping those with any other word, too.

    Raises
    ------
    InputError
        If a word has no meaning and there is no mapping, or the mapping names a word of no cell.
    """
    texts = words.astype(object).where(words.notna(), "").map(lambda word: str(word).strip())
    number = texts.value_counts()
    known = {part: part for part in (TRAIN, VAL, TEST, UNUSED)} | dict(meaning or {})
    others = [word for word in number.index if word and word not in known]
    shown = ", ".join(f"{word!r} ({number[word]:,} cells)" for word in others[:SHOWN])
    absent = [word for word in meaning or {} if word not in number]
    if absent:
        raise InputError(
            f"{where}: 'parts' names {', '.join(map(repr, absent))}, the word of no cell. The "
            f"words are {', '.join(map(repr, number.index[:SHOWN]))}."
        )
    if others and meaning is None:
        raise InputError(
            f"{where}: {len(others)} word(s) are none of {TRAIN}, {VAL}, {TEST} and {UNUSED}: "
            f"{shown}. Say what they mean by the split's 'parts', for instance "
            f"parts: {{{others[0]}: {TEST}}}; cells with words that it does not name are unused."
        )
    if others:
        logger.info("%s: cells with other words are unused: %s", where, shown)
    return np.array([known.get(word, UNUSED) for word in texts], dtype=object)


def _check_parts(
    parts: np.ndarray, is_control: np.ndarray, needs_control: bool, where: str
) -> None:
    empty = [part for part in (TRAIN, VAL, TEST) if not (parts == part).any()]
    if empty:
        raise InputError(
            f"{where}: no cell of the screen is of the part {' or '.join(map(repr, empty))}. "
            f"Models learn from {TRAIN!r}, their best step is chosen by {VAL!r}, and predictions "
            "are compared with the others: name cells of each, or the words for them by 'parts'."
        )
    held_out = (parts != TRAIN) & is_control
    if needs_control and not ((parts == TRAIN) & is_control).any():
        raise InputError(
            f"{where}: none of {int(is_control.sum()):,} control cells is of the part {TRAIN!r}. "
            "Effects are relative to control cells: train on some of them."
        )
    if needs_control and not held_out.any():
        raise InputError(
            f"{where}: all {int(is_control.sum()):,} control cells are of the part {TRAIN!r}. "
            f"Effects of held-out cells are relative to held-out control cells: give some of them "
            f"to {TEST!r}."
        )
