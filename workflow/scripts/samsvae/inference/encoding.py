"""How perturbation labels become the dosages that a model sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samsvae.labels import CONTROL, components, doses
from samsvae.screen import dosages


@dataclass(frozen=True)
class Encoding:
    """Names of a model's perturbations, and what a combination is made of.

    Attributes
    ----------
    names
        The T perturbations, without doses.
    combinations
        ``additive``: a combination is the sum of its genes, each scaled by its dose; ``unique``:
        a perturbation of its own under its full label, doses included, while a gene alone is
        scaled by its dose.
    """

    names: tuple[str, ...]
    combinations: str = "additive"

    @classmethod
    def of(cls, labels: Sequence[str], combinations: str) -> "Encoding":
        """Encode the labels of a screen."""
        present = set(labels) - {CONTROL}
        if combinations == "unique":
            return cls(tuple(sorted({_whole(label)[0] for label in present})), combinations)
        singles = {part for label in present for part in components(label)}
        return cls(tuple(sorted(singles)), combinations)

    def dosage(self, labels: Sequence[str]) -> np.ndarray:
        """Encode canonical labels as dosages, labels x T, float32.

        Raises
        ------
        KeyError
            If a label holds a perturbation that has no name here.
        """
        if self.combinations == "unique":
            column = {name: index for index, name in enumerate(self.names)}
            rows = np.zeros((len(labels), len(self.names)), dtype=np.float32)
            for row, label in enumerate(labels):
                if label != CONTROL:
                    name, dose = _whole(label)
                    rows[row, column[name]] = dose
            return rows
        return dosages(labels, self.names).toarray()


def _whole(label: str) -> tuple[str, float]:
    """Name the one perturbation that a label is, and its dose."""
    parts = doses(label)
    return next(iter(parts.items())) if len(parts) == 1 else (label, 1.0)
