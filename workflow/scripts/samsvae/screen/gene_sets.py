"""Gene sets in GMT files, restricted to measured genes."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from samsvae.runtime.errors import InputError
from samsvae.runtime.files import read_lines, whole_file
from samsvae.screen.validation import text_fault

GeneSets = dict[str, list[str]]

MOST_BYTES = 2**27


def read_gmt(path: str | Path) -> GeneSets:
    """Read a GMT file: one set a line, name, description and gene symbols separated by tabs.

    :func:`gseapy.parser.read_gmt` reads the same form, but skips a line that is none, keeps the
    last of two sets of one name, and takes seconds to import where jobs are planned.

    Raises
    ------
    InputError
        If the file is missing or too large, or a line is not of that form.
    """
    file = Path(path)
    sets: GeneSets = {}
    lines = read_lines(path, "the gene set's path", MOST_BYTES)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        genes = [gene.strip() for gene in rest[1:] if gene.strip()]
        if not name.strip() or not genes:
            raise InputError(
                f"{file}: line {number} is not a gene set (name, description and at least one "
                "gene, separated by tabs)."
            )
        fault = text_fault(name)
        if fault:
            raise InputError(f"{file}: line {number}: the name {name[:80]!r} of the set {fault}.")
        if name in sets:
            raise InputError(f"{file}: line {number} names the set {name!r} a second time.")
        sets[name] = list(dict.fromkeys(genes))
    if not sets:
        raise InputError(f"{file}: there is no gene set in this file.")
    return sets


def read_collections(
    paths: Mapping[str, str | Path], genes: Collection[str], min_size: int, max_size: int
) -> dict[str, GeneSets]:
    """Read several GMT files, each restricted as by :func:`measured_sets`.

    Parameters
    ----------
    paths
        Files by the name of the collection.
    genes, min_size, max_size
        As of :func:`measured_sets`.
    """
    return {
        name: measured_sets(read_gmt(path), genes, str(path), min_size, max_size)
        for name, path in paths.items()
    }


def write_gmt(sets: Mapping[str, Iterable[str]], path: str | Path, description: str) -> None:
    """Write a GMT file atomically, with one description for all sets."""
    lines = ["\t".join([name, description, *genes]) for name, genes in sets.items()]
    with whole_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measured_sets(
    sets: Mapping[str, Iterable[str]],
    genes: Iterable[str],
    where: str,
    min_size: int = 1,
    max_size: int | None = None,
) -> GeneSets:
    """Restrict gene sets to measured genes, then to a range of sizes.

    Parameters
    ----------
    sets
        Genes by set.
    genes
        Measured genes.
    where
        File, for messages.
    min_size, max_size
        Smallest and largest number of measured genes of a retained set.

    Returns
    -------
    dict of list of str
        At least one set.

    Raises
    ------
    InputError
        If no set has a gene in common with the screen, or none is of the right size.
    """
    measured = set(genes)
    shared = {name: [g for g in members if g in measured] for name, members in sets.items()}
    largest = max(map(len, shared.values()), default=0)
    if not largest:
        example = next(iter(next(iter(sets.values()))))
        raise InputError(
            f"{where}: none of its gene sets shares a gene with the screen (a gene there: "
            f"{example!r}; a gene of the screen: {min(measured)!r}). Use gene sets of the same "
            "species and the same kind of identifier, or set 'gene_symbol_column'."
        )
    kept = {
        name: members
        for name, members in shared.items()
        if min_size <= len(members) <= (max_size or len(measured))
    }
    if not kept:
        raise InputError(
            f"{where}: no gene set has between {min_size} and {max_size} measured genes (the "
            f"largest has {largest}). Change enrichment.min_size or enrichment.max_size."
        )
    return kept
