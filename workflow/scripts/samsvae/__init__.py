"""Deep generative models of single-cell CRISPR screens, and their evaluation.

The floors, from the ground up (imports go down only):

- :mod:`samsvae.screen.canonical`: the canonical screen, what every later stage may rely on
- :mod:`samsvae.sources`, :mod:`samsvae.screen.splits`: where cells come from, which of them train
- :mod:`samsvae.models`: the generative models and their guides
- :mod:`samsvae.inference`: objective, training, importance-weighted bounds
- :mod:`samsvae.effects`: observed and predicted average treatment effects
- :mod:`samsvae.metrics`, :mod:`samsvae.biology`: how good they are, and what they say of genes
- :mod:`samsvae.statistics`: how sure the scores are, and which model is better
- :mod:`samsvae.figures`, :mod:`samsvae.report`: what a reader is shown

Beside them, :mod:`samsvae.inspection` looks at a screen before anything is trained,
:mod:`samsvae.runtime` runs scripts and records their provenance.

The names in ``__all__`` can be imported from here; each is imported at its first use,
since torch takes seconds.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "build_model",
    "effect_scores",
    "load_model",
    "observed_effects",
    "open_screen",
    "perturbations",
    "predicted_effects",
    "read_effects",
    "read_screen",
    "read_split",
    "sample_cells",
]

_MODULES = {
    "build_model": "samsvae.models.registry",
    "effect_scores": "samsvae.evaluation.scores",
    "load_model": "samsvae.inference.checkpoint",
    "observed_effects": "samsvae.evaluation.observed",
    "open_screen": "samsvae.screen.canonical",
    "perturbations": "samsvae.screen.canonical",
    "predicted_effects": "samsvae.evaluation.predicted",
    "read_effects": "samsvae.evaluation.effects",
    "read_screen": "samsvae.screen.canonical",
    "read_split": "samsvae.screen.splits",
    "sample_cells": "samsvae.evaluation.samples",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
