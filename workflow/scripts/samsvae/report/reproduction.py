"""Whether the paper's results were reproduced, in a sentence."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from samsvae.chapters import PAPER
from samsvae.files import read_table
from samsvae.statistics.reproduction import INSIDE, OUTSIDE


def reproduction_in_words(tables: Path, has: Collection[str]) -> list[str]:
    """Say how many published results were met; nothing where there is nothing published.

    Parameters
    ----------
    tables
        Folder of the experiment's tables.
    has
        What the experiment has, see :mod:`samsvae.contents`.
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
            f"where they are expected if nothing differs, and {outside} do not."
        )
    else:
        sentence = (
            f"None of the paper's {len(reproduction)} results was run as published, so nothing is "
            "said of their reproduction."
        )
    return [sentence + (f" The others: {', '.join(others)}." if others else "")]
