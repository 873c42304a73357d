"""Which gene a guide targets: from a table, a column of the file, or read off the guide's name."""

import csv
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from samsvae.errors import InputError
from samsvae.files import read_lines
from samsvae.labels import CONTROL, SAFE_LIKE, LabelSet
from samsvae.sources.h5ad_source import H5adSource

TARGETING, NON_TARGETING, SAFE_TARGETING = "targeting", "non-targeting", "safe-targeting"

# names that tables of guides give to these columns, the first that is there being taken
GUIDE_COLUMNS = (
    "guide", "guide_id", "sgrna", "sgrna_id", "grna", "grna_id", "guide_name", "sgid", "id", "name",
)  # fmt: skip
GENE_COLUMNS = (
    "gene", "target_gene_name", "target_gene", "gene_symbol", "gene_name", "intended_target_name",
    "grna_target", "target", "target_name", "target_gene_id",
)  # fmt: skip

TargetOf = Callable[[str], str | None]


def target_finder(
    source: H5adSource, named: Mapping[str, str] | None = None
) -> tuple[TargetOf | None, bool]:
    """Find out how guides of a source name their genes.

    Parameters
    ----------
    source
        Its `guide_table`, a text file with a guide and its gene on each line; or its
        `guide_pattern`, a regular expression whose one group is the gene.
    named
        Gene by guide, if the file itself says so.

    Returns
    -------
    target_of : callable or None
        Gives the gene of a guide, None if it has none; None if labels are taken as they are.
    only_controls : bool
        Whether a table names control guides alone, so that other labels are taken as they are.

    Raises
    ------
    InputError
        If table or pattern cannot be used.
    """
    if source.guide_table is not None:
        genes = read_guide_table(source.guide_table)
        if all(gene in source.controls for gene in genes.values()):
            return lambda guide: genes.get(guide, guide), True
        return genes.get, False
    if source.guide_pattern is not None:
        return _pattern_finder(source.guide_pattern), False
    if named is not None:
        return named.get, False
    return None, False


def _pattern_finder(pattern: str) -> TargetOf:
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


def refuse_unknown_guides(
    guides: Iterable[str], target_of: TargetOf | None, source: H5adSource, where: str
) -> None:
    """Refuse guides of which neither table nor pattern knows the gene.

    Labels of control cells, and those that are left out, need none.

    Raises
    ------
    InputError
        Naming the first few, and the key to change.
    """
    if target_of is None:
        return
    unknown = sorted(
        guide
        for guide in set(guides)
        if not target_of(guide) and guide not in source.controls and guide not in source.excluded
    )
    if unknown:
        key = next(
            (key for key in ("guide_table", "guide_pattern") if getattr(source, key)), "gene_column"
        )
        remedy = {
            "guide_table": "Add a line for each, or leave their cells out by 'exclude'.",
            "guide_pattern": "Widen the pattern, or leave their cells out by 'exclude'.",
            "gene_column": "Name their genes in the file, or set 'guide_table'.",
        }
        raise InputError(
            f"{where}: {len(unknown)} guide(s) have no gene by {key!r}"
            + (f" ({getattr(source, key)!r})" if key != "gene_column" else "")
            + f", for instance {', '.join(unknown[:5])}. {remedy[key]}"
        )


def read_guide_table(path: str) -> dict[str, str]:
    """Read a table of guides and their genes.

    Parameters
    ----------
    path
        A text file with a guide and its gene on each line, separated by a tab, a comma or a
        semicolon. A file of more columns has a first line that names them, such as Cell Ranger's
        feature reference (``id``, ``target_gene_name``) or IGVF's table of guides (``guide_id``,
        ``intended_target_name``).

    Returns
    -------
    dict of str
        Gene by guide.

    Raises
    ------
    InputError
        If the file is missing or not such a table, or gives a guide two genes.
    """
    lines = read_lines(path, "'guide_table'")
    first = next((line for line in lines if line.strip()), "")
    separator = next((sign for sign in "\t,;" if sign in first), "\t")
    places, named = _columns(_fields(first, separator), path)
    genes: dict[str, str] = {}
    start = lines.index(first) + 1 if named else 0
    for number, line in enumerate(lines[start:], start=start + 1):
        if not line.strip():
            continue
        fields = _fields(line, separator)
        guide, gene = (fields[place] if place < len(fields) else "" for place in places)
        if named and guide and not gene:
            continue  # it targets nothing
        if not (guide and gene) or (not named and len(fields) != 2):
            raise InputError(
                f"{path}: line {number} is not a guide and its gene, separated by a tab: {line!r}."
            )
        if genes.setdefault(guide, gene) != gene:
            raise InputError(
                f"{path}: line {number} gives the guide {guide!r} the gene {gene!r}, an earlier "
                f"line {genes[guide]!r}. Keep one."
            )
    if not genes:
        raise InputError(f"{path}: there is no guide in this table.")
    return genes


def _fields(line: str, separator: str) -> list[str]:
    [fields] = csv.reader([line], delimiter=separator) if line else [[]]
    return [field.strip() for field in fields]


def _columns(first: Sequence[str], path: str) -> tuple[tuple[int, int], bool]:
    """Find the columns of guide and gene, and whether the first line names them."""
    names = [name.casefold().replace(" ", "_") for name in first]
    guide = next((names.index(name) for name in GUIDE_COLUMNS if name in names), None)
    gene = next((names.index(name) for name in GENE_COLUMNS if name in names), None)
    if guide is not None and gene is not None and guide != gene:
        return (guide, gene), True
    if len(first) > 2:
        raise InputError(
            f"{path}: {len(first)} columns, and the first line does not say which are the guide "
            "and its gene. Keep two columns, or name them 'guide' and 'gene' in a first line."
        )
    return (0, 1), False


def kind_of_guide(guide: str, target: str | None, controls: LabelSet) -> str:
    """Tell whether a guide targets a gene, nothing, or a locus where a cut has no effect."""
    if target is not None and target not in controls and target != CONTROL:
        return TARGETING
    named = f"{guide} {target or ''}"
    return SAFE_TARGETING if SAFE_LIKE.fullmatch(named) else NON_TARGETING


def guide_frame(targets: Mapping[str, str | None], controls: LabelSet) -> pd.DataFrame:
    """List guides with what they target.

    Parameters
    ----------
    targets
        Gene of each guide; None, or a control, for those that target none.
    controls
        What stands for control.

    Returns
    -------
    DataFrame
        ``guide``, ``target`` (``control`` where it targets no gene) and ``kind``.
    """
    rows = []
    for guide, target in targets.items():
        kind = kind_of_guide(guide, target, controls)
        rows.append((guide, target if kind == TARGETING else CONTROL, kind))
    return pd.DataFrame(rows, columns=["guide", "target", "kind"])
