"""Canonical labels of perturbations, and how a source's labels are brought into that form.

``"control"``, a gene, or genes in alphabetical order joined by ``+``, each with its dose unless
that is 1: ``A@0.5+B``.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, unquote

from samsvae.doses import check_undosed, split_dose, with_dose
from samsvae.errors import InputError

CONTROL = "control"
JOIN = "+"

# no gene symbol contains these, so a label that does was meant as a combination
FOREIGN_DELIMITERS = "+|,;&"
# gene symbols may contain these, so only a label whose every part is a label itself is suspect
POSSIBLE_DELIMITERS = "_/:-. "


def doses(perturbation: str) -> dict[str, float]:
    """Read the doses of a canonical label's single perturbations (none for control)."""
    return {} if perturbation == CONTROL else dict(map(split_dose, perturbation.split(JOIN)))


def components(perturbation: str) -> list[str]:
    """Name a canonical label's single perturbations, without doses (none for control)."""
    return list(doses(perturbation))


def label_of(parts: Mapping[str, float]) -> str:
    """Write the canonical label of single perturbations at their doses."""
    return JOIN.join(with_dose(name, parts[name]) for name in sorted(parts)) or CONTROL


def file_name(perturbation: str) -> str:
    """Write a perturbation's name so that it can be the name of a file.

    What has a meaning in paths, such as a slash, is written as in web addresses (``%2F``).
    """
    quoted = quote(perturbation, safe=JOIN + "@")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def perturbation_of(file_name: str) -> str:
    """Read the name of a perturbation that :func:`file_name` wrote."""
    return unquote(file_name)


def canonical_labels(
    labels: Sequence[str], control: str, delimiter: str | None, where: str
) -> list[str]:
    """Bring perturbation labels into canonical form.

    Parameters
    ----------
    labels
        Distinct labels of the source.
    control
        The source's label of control cells.
    delimiter
        What joins the genes of a combination in the source; None if nothing does.
    where
        File and column, for messages.

    Returns
    -------
    list of str
        For each label its canonical form: ``control``, or the genes sorted and joined by ``+``.
        A control label within a combination, as in ``KLF1+control``, is dropped.

    Raises
    ------
    InputError
        If there is no control label, a label has an empty part or one that reads as a dose, or
        a label looks like a combination written with another delimiter.
    """
    if control not in labels:
        some = ", ".join(sorted(map(str, labels))[:8])
        raise InputError(
            f"{where}: no cell has the control label {control!r} (labels there: {some}, ...). "
            "Set 'control' to the label of the unperturbed cells."
        )
    singles = {label for label in labels if not delimiter or delimiter not in label}
    return [_canonical_label(label, control, delimiter, singles, where) for label in labels]


def _canonical_label(
    label: str, control: str, delimiter: str | None, singles: set[str], where: str
) -> str:
    if label == control:
        return CONTROL
    if delimiter is None:
        if JOIN in label or label == CONTROL:
            raise InputError(
                f"{where}: the label {label!r} cannot be kept as it is, since {JOIN!r} joins "
                f"combinations and {CONTROL!r} means control. Rename it in the file."
            )
        check_undosed(label, label, where)
        return label
    parts = label.split(delimiter)
    if not all(part.strip() for part in parts):
        raise InputError(
            f"{where}: the label {label!r} has an empty part between the delimiters "
            f"{delimiter!r}. Correct the label, or set 'delimiter'."
        )
    genes = sorted({part.strip() for part in parts} - {control})
    for gene in genes:
        check_undosed(label, gene, where)
        found = _foreign_delimiter(gene, delimiter, singles)
        if found:
            raise InputError(
                f"{where}: the label {label!r} seems to be a combination joined by {found!r}, "
                f"but the delimiter is {delimiter!r}. Set 'delimiter' to {found!r}, or to null "
                "if labels are never combinations."
            )
    return label_of(dict.fromkeys(genes, 1.0))


def _foreign_delimiter(gene: str, delimiter: str, singles: set[str]) -> str | None:
    for character in FOREIGN_DELIMITERS:
        if character != delimiter and character in gene:
            return character
    for character in POSSIBLE_DELIMITERS:
        parts = gene.split(character)
        if character != delimiter and len(parts) > 1 and singles.issuperset(parts):
            return character
    return None
