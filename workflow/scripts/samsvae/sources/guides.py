"""Which gene a guide targets: from a table, or read off the guide's name."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from samsvae.errors import InputError
from samsvae.sources.h5ad_source import H5adSource


def genes_of_guides(guides: Iterable[str], source: H5adSource, where: str) -> dict[str, str]:
    """Name the gene that each guide targets.

    Parameters
    ----------
    guides
        Guides of the file, the control label perhaps among them.
    source
        Its `guide_table`, a text file with a guide and its gene on each line, separated by a tab;
        or its `guide_pattern`, a regular expression whose one group is the gene. Without either a
        label is taken as it is.
    where
        File and column, for messages.

    Returns
    -------
    dict of str
        Gene by guide. The control label stands for itself, unless table or pattern know it.

    Raises
    ------
    InputError
        If table or pattern cannot be used, or do not know a guide.
    """
    gene_of = _finder(source.guide_table, source.guide_pattern)
    genes = {guide: gene_of(guide) for guide in guides}
    if source.control in genes:
        genes[source.control] = genes[source.control] or source.control
    unknown = sorted(guide for guide, gene in genes.items() if not gene)
    if unknown:
        key = "guide_table" if source.guide_table else "guide_pattern"
        raise InputError(
            f"{where}: {len(unknown)} guide(s) have no gene by {key!r} "
            f"({getattr(source, key)!r}), for instance {', '.join(unknown[:5])}. "
            + ("Add a line for each." if source.guide_table else "Widen the pattern.")
        )
    return {guide: gene for guide, gene in genes.items() if gene}


def _finder(table: str | None, pattern: str | None) -> Callable[[str], str | None]:
    if table is not None:
        return _read_table(table).get
    if pattern is None:
        return lambda guide: guide
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"'guide_pattern': {pattern!r} is not a regular expression: {error}."
        ) from error
    if expression.groups != 1:
        raise InputError(
            f"'guide_pattern': {pattern!r} has {expression.groups} groups, but needs one alone, "
            r"the gene, as in '^(.+)_g\d+$'."
        )

    def search(guide: str) -> str | None:
        found = expression.search(guide)
        return found[1] if found else None

    return search


def _read_table(path: str) -> dict[str, str]:
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file. Set 'guide_table' to an existing table.")
    genes: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise InputError(
                f"{path}: line {number} is not a guide and its gene, separated by a tab: {line!r}."
            )
        guide, gene = fields
        if genes.setdefault(guide, gene) != gene:
            raise InputError(
                f"{path}: line {number} gives the guide {guide!r} the gene {gene!r}, an earlier "
                f"line {genes[guide]!r}. Keep one."
            )
    return genes
