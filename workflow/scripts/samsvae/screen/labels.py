"""Canonical labels of perturbations with their doses, and the parser of labels of sources.

A canonical label is ``"control"``, a gene, or genes in alphabetical order joined by ``+``, each
with its dose unless that is 1: ``A@0.5+B``.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import pandas as pd

from samsvae.runtime.errors import InputError

MARK = "@"
DOSED = re.compile(rf"(.+){MARK}([0-9]+(?:\.[0-9]+)?)", re.DOTALL)


def with_dose(name: str, dose: float) -> str:
    """Format a perturbation at a dose, to the precision of float32; dose 1 is omitted."""
    # positional, since the exponent of 1e+20 contains the delimiter of combinations
    text = np.format_float_positional(np.float32(dose), trim="-")
    return name if text == "1" else f"{name}{MARK}{text}"


def split_dose(part: str) -> tuple[str, float]:
    """Split a part of a canonical label into its perturbation and dose."""
    dosed = DOSED.fullmatch(part)
    return (dosed[1], float(dosed[2])) if dosed else (part, 1.0)


def refuse_dose_in_label(label: str, part: str, where: str) -> None:
    """Refuse a part of a source's label that looks like a dose.

    Raises
    ------
    InputError
        Naming the label. Other uses of ``@``, as in ``HOXA@``, are allowed.
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
    """Parse the doses of a cell.

    Parameters
    ----------
    value
        Value of the column: a number, or numbers joined by `delimiter`; not used for a control.
    label
        The cell's label in the source, for messages.
    targets
        Target gene of each part of the label, in its order; None for a control.
    delimiter
        Delimiter of the genes of a combination; None without combinations.
    where
        File and column, for messages.

    Returns
    -------
    dict of float
        Dose by perturbation; empty for a control cell.

    Raises
    ------
    InputError
        If doses are missing, too few or too many, not positive and finite in float32, or if a gene
        has two.
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


CONTROL = "control"
JOIN = "+"

# no gene symbol contains these: a label with one is a combination
FOREIGN_DELIMITERS = "+|,;&"
# gene symbols may contain these: likely delimiters if all parts are labels or measured genes
POSSIBLE_DELIMITERS = "_/:-. "

# common labels of control cells
CONTROL_LIKE = re.compile(
    r"(sg|g)?(ctrl|controls?|ntc?|nt[-_ ]?guide|non[-_ ]?target(s|ing)?|no[-_ ]?target(s|ing)?)"
    r"([-_ .]?(sg|g|guide|sgrna|grna|control|ctrl)?[-_ .]?\d+)?([-_ .].*)?"
    r"|neg(ative)?[-_ ]?(ctrl|control).*|safe[-_ ]?(targeting|harbou?r|cutter)?[-_ ]?\d*"
    r"|intergenic.*|scrambled?.*|unperturbed|untreated|wt|wild[-_ ]?type|mock|dmso|vehicle"
    r"|empty([-_ ]?vector)?|(sg|g)?(aavs1|rosa26|ccr5|e?gfp|lacz|luc(iferase)?)([-_ .]?(sg|g)?\d+)?"
    r"|neg([-_ ]?\d+)?",
    re.IGNORECASE,
)
# common labels of safe-targeting guides, which cut without an effect
SAFE_LIKE = re.compile(r".*(safe[-_ ]?(target|harbou?r|cut)|aavs1|rosa26|ccr5).*", re.IGNORECASE)
# common labels of cells without a guide, or with several
NO_GUIDE_LIKE = re.compile(
    r"|[-–—.?*]+|nan|none|null|n/?a|unknown|un-?assigned|un-?mapped|un-?detected|undetermined"
    r"|multi(plet|ple|[-_ ].*)?s?|doublets?|ambiguous|negative|blank|empty[-_ ]?droplet"
    r"|no[-_ ]?(sg|g)?(rna|guide)s?|no[-_ ]?(call|feature|assignment|barcode).*|noguide"
    r"|not[-_ ]?(assigned|detected|called)|low[-_ ]?(umi|confidence).*",
    re.IGNORECASE,
)


def doses(perturbation: str) -> dict[str, float]:
    """Parse the doses of a canonical label's single perturbations (none for control)."""
    return {} if perturbation == CONTROL else dict(map(split_dose, perturbation.split(JOIN)))


def components(perturbation: str) -> list[str]:
    """List a canonical label's single perturbations, without doses (none for control)."""
    return list(doses(perturbation))


def label_of(parts: Mapping[str, float]) -> str:
    """Format the canonical label of single perturbations at their doses."""
    return JOIN.join(with_dose(name, parts[name]) for name in sorted(parts)) or CONTROL


def file_name(perturbation: str) -> str:
    """Encode the name of a perturbation as a file name.

    Characters with a meaning in paths, such as a slash, are percent-encoded (``%2F``).
    """
    quoted = quote(perturbation, safe=JOIN + "@")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def perturbation_of(file_name: str) -> str:
    """Decode the name of a perturbation that :func:`file_name` encoded."""
    return unquote(file_name)


@dataclass(frozen=True)
class LabelSet:
    """Set of labels, such as those of control cells, listed or matched by a pattern.

    Attributes
    ----------
    names
        The labels, without white space at their ends.
    pattern
        A regular expression to search for in a label; None if labels are listed.
    missing
        Whether missing labels belong to the set.
    """

    names: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None
    missing: bool = False

    @classmethod
    def of(cls, given: Any, key: str) -> "LabelSet":
        """Parse a value of the configuration: a label, a list of labels, or ``{pattern: ...}``.

        Parameters
        ----------
        given
            The value. None, NaN and the string ``nan`` also mean a missing label.
        key
            Configuration key, for the message.

        Raises
        ------
        InputError
            If the pattern is not a regular expression.
        """
        if isinstance(given, Mapping):
            try:
                return cls(pattern=re.compile(given["pattern"]))
            except re.error as error:
                raise InputError(
                    f"{key!r}: {given['pattern']!r} is not a regular expression: {error}."
                ) from error
        listed = [given] if isinstance(given, str) else given
        names = frozenset("nan" if name is None else str(name).strip() for name in listed)
        return cls(names, missing="nan" in {name.casefold() for name in names})

    def __contains__(self, label: str) -> bool:
        """Whether a label, or a part of one, belongs to the set."""
        if self.pattern is not None:
            return bool(self.pattern.search(label))
        return label.strip() in self.names

    def __str__(self) -> str:
        if self.pattern is not None:
            return f"the pattern {self.pattern.pattern!r}"
        return " or ".join(map(repr, sorted(self.names))) or "none"


@dataclass(frozen=True)
class ReadLabel:
    """Parsed label of a source.

    Attributes
    ----------
    parts
        Its genes or guides, as written.
    targets
        Target gene of each part; None for a control.
    """

    parts: tuple[str, ...]
    targets: tuple[str | None, ...]

    @property
    def doses(self) -> dict[str, float]:
        """Dose 1 of each gene; none for control."""
        return {target: 1.0 for target in self.targets if target is not None}


@dataclass
class LabelGrammar:
    """Parser of the labels of a source.

    Attributes
    ----------
    control
        Labels of control cells, and of control guides within combinations.
    delimiter
        Delimiter of the genes of a combination; None without combinations.
    where
        File and column, for messages.
    measured
        Measured genes, which help to split labels.
    target_of
        Maps a part to its target gene, or to None if unknown; None if parts are genes.
    """

    control: LabelSet
    delimiter: str | None
    where: str
    measured: Collection[str] = frozenset()
    target_of: Callable[[str], str | None] | None = None
    _singles: set[str] = field(default_factory=set)

    def read(self, labels: Iterable[str]) -> list[ReadLabel]:
        """Parse distinct labels.

        Returns
        -------
        list of ReadLabel
            In the order of the labels. A control within a combination, as in ``KLF1+control``, is
            dropped, and a combination of controls alone is control.

        Raises
        ------
        InputError
            If a label has an empty part or one that looks like a dose, seems to be a combination
            with another delimiter, or has the name of control cells without being a control.
        """
        written = [label.strip() for label in labels]
        self._singles.update(
            label for label in written if not self.delimiter or self.delimiter not in label
        )
        split = [self.split(label) for label in written]
        if CONTROL not in self.control and not any(
            self._is_control(part) for parts in split for part in parts
        ):
            raise refuse_no_control(written, self.control, self.where)
        read = [self._read(label, parts) for label, parts in zip(written, split, strict=True)]
        if self.delimiter is not None:
            self._check_delimiter(read)
        return read

    def split(self, label: str) -> list[str]:
        """Split a label into its parts; genes whose symbols contain the delimiter stay whole.

        If parts are no known genes or guides, but neighbours joined again are, as ``HLA`` and
        ``A`` with the delimiter ``-``, they are joined.
        """
        if self.delimiter is None or label in self.control:
            return [label]
        parts = [part.strip() for part in label.split(self.delimiter)]
        if not all(parts):
            doubled = next((2 * c for c in FOREIGN_DELIMITERS if 2 * c in label), None)
            remedy = f"set 'delimiter' to {doubled!r}" if doubled else "set 'delimiter'"
            raise InputError(
                f"{self.where}: the label {label!r} has an empty part between the delimiters "
                f"{self.delimiter!r}. Correct the label, or {remedy}."
            )
        if len(parts) > 1 and not all(map(self._knows, parts)):
            return self._joined_again(parts) or parts
        return parts

    def _joined_again(self, parts: Sequence[str]) -> list[str] | None:
        """Join neighbouring parts to the largest number of known names; None if impossible."""
        assert self.delimiter is not None
        best: list[list[str] | None] = [[]]
        for end in range(1, len(parts) + 1):
            found = [
                [*before, joined]
                for start in range(end)
                if (before := best[start]) is not None
                and self._knows(joined := self.delimiter.join(parts[start:end]))
            ]
            best.append(max(found, key=len, default=None))
        return best[-1]

    def _knows(self, part: str) -> bool:
        if self.target_of is not None:
            return part in self.control or self.target_of(part) is not None
        return part in self.measured or part in self.control or part in self._singles

    def _is_control(self, part: str) -> bool:
        target = part if self.target_of is None else self.target_of(part)
        return part in self.control or (target is not None and target in self.control)

    def _read(self, label: str, parts: Sequence[str]) -> ReadLabel:
        targets: list[str | None] = []
        for part in parts:
            if self._is_control(part):
                targets.append(None)
                continue
            target = part if self.target_of is None else self.target_of(part)
            if target is None:
                raise InputError(
                    f"{self.where}: the guide {part!r} of {label!r} has no gene. Add it to the "
                    "guide table, or name it in 'control'."
                )
            self._check_target(label, target)
            targets.append(target)
        return ReadLabel(tuple(parts), tuple(targets))

    def _check_target(self, label: str, target: str) -> None:
        if target == CONTROL:
            raise InputError(
                f"{self.where}: the label {label!r} would be merged with the control cells, which "
                f"are labelled {self.control}. If {CONTROL!r} means control cells, too, add it to "
                f"'control'; if it means cells without a guide, set exclude: [{CONTROL}]."
            )
        if self.delimiter is None and JOIN in target:
            raise InputError(
                f"{self.where}: the label {label!r} cannot be kept as it is, since {JOIN!r} joins "
                f"combinations. Rename it in the file, or set 'delimiter'."
            )
        refuse_dose_in_label(label, target, self.where)

    def _check_delimiter(self, read: Sequence[ReadLabel]) -> None:
        genes = {(t, one) for one in read for t in one.targets if t is not None}
        suspects = sorted(((target, " ".join(one.parts)) for target, one in genes))
        for target, label in suspects:
            for character in FOREIGN_DELIMITERS:
                if character in target and target not in self.measured:
                    doubled = 2 * character if 2 * character in target else character
                    raise self._another_delimiter(label, doubled)
        for character in POSSIBLE_DELIMITERS:
            joined = {t: label for t, label in suspects if character in t and t != character}
            torn = [t for t in joined if self._is_combination(t, character)]
            by_label = [t for t in torn if self._singles.issuperset(_split(t, character))]
            # a single such label may be the name of a gene, a majority is not
            if by_label or (torn and 2 * len(torn) > len(joined)):
                raise self._another_delimiter(joined[(by_label or torn)[0]], character)

    def _is_combination(self, target: str, character: str) -> bool:
        parts = _split(target, character)
        return (
            character not in str(self.delimiter)
            and len(parts) > 1
            and target not in self.measured
            and all(
                part in self.measured or part in self._singles or part in self.control
                for part in parts
            )
        )

    def _another_delimiter(self, label: str, found: str) -> InputError:
        return InputError(
            f"{self.where}: the label {label!r} seems to be a combination joined by {found!r}, "
            f"but the delimiter is {self.delimiter!r}. Set 'delimiter' to {found!r}, or to null "
            "if labels are never combinations."
        )


def _split(label: str, character: str) -> list[str]:
    return [part.strip() for part in label.split(character)]


def likely_delimiter(labels: Iterable[str], measured: Collection[str]) -> str | None:
    """Find a delimiter that joins measured genes in labels which are not measured genes."""
    written = list(labels)
    for character in FOREIGN_DELIMITERS + POSSIBLE_DELIMITERS:
        having = [label for label in written if character in label.strip()]
        joined = [
            label
            for label in having
            if label.strip() not in measured
            and all(part in measured for part in _split(label.strip(), character))
        ]
        if joined and 2 * len(joined) > len(having):
            return character
    return None


def refuse_no_control(labels: Iterable[str], control: LabelSet, where: str) -> InputError:
    """Build the error of missing control cells, with the labels that look like controls."""
    known = sorted({str(label).strip() for label in labels})
    alike = [label for label in known if CONTROL_LIKE.fullmatch(label)]
    shown = ", ".join(map(repr, alike[:5])) if alike else ""
    return InputError(
        f"{where}: no cell has the control label {control} (labels there: "
        f"{', '.join(known[:8])}, ...). Set 'control' to the label of the unperturbed cells"
        + (f"; these look like controls: {shown}." if shown else ".")
    )
