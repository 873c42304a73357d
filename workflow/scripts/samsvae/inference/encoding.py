"""How perturbation labels become the dosages that a model sees."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samsvae.screen import CONTROL, components, dosages


@dataclass(frozen=True)
class Encoding:
    """Names of a model's perturbations, and what a combination is made of.

    Attributes
    ----------
    names
        The T perturbations.
    combinations
        ``additive``: a combination is the sum of its genes; ``unique``: a perturbation of its
        own.
    """

    names: tuple[str, ...]
    combinations: str = "additive"

    @classmethod
    def of(cls, labels: Sequence[str], combinations: str) -> "Encoding":
        """Encode the labels of a screen."""
        present = set(labels) - {CONTROL}
        if combinations == "unique":
            return cls(tuple(sorted(present)), combinations)
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
            rows = np.zeros((len(labels), len(self.names)), dtype=np.float32)
            for row, label in enumerate(labels):
                if label != CONTROL:
                    rows[row, self.names.index(label)] = 1
            return rows
        return dosages(labels, self.names).toarray()
