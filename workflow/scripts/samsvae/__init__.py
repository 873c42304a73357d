"""Deep generative models of single-cell CRISPR screens, and their evaluation.

Packages, from the lowest up (imports go down only):

- :mod:`samsvae.config`: kinds of models and their hyperparameters, validation, experiments
- :mod:`samsvae.screen`: the canonical screen: design matrix and labels, validation, splits
- :mod:`samsvae.sources`: readers of published screens and of AnnData files, simulators
- :mod:`samsvae.inspection`: checks of a screen before anything is trained
- :mod:`samsvae.kernels`: compiled kernels and matrix products
- :mod:`samsvae.models`: the generative models and their guides
- :mod:`samsvae.inference`: objective, trainer, importance-weighted bounds, posterior queries
- :mod:`samsvae.evaluation`: effects, metrics, statistical comparison of models
- :mod:`samsvae.biology`: enrichment, latent factors, cell states
- :mod:`samsvae.figures`, :mod:`samsvae.report`: figures and the report

:mod:`samsvae.runtime` serves all of them: errors, files, provenance, progress, scripts; its
:mod:`~samsvae.runtime.plan` lists the runs of a configuration and its
:mod:`~samsvae.runtime.layout` their files.

Each name in ``__all__`` is imported at its first use, since importing torch takes seconds.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "build_model",
    "effect_scores",
    "load",
    "load_model",
    "observed_effects",
    "open_screen",
    "perturbations",
    "predicted_effects",
    "read_effects",
    "read_screen",
    "read_split",
    "sample_cells",
    "with_perturbations",
]

_MODULES = {
    "build_model": "samsvae.models",
    "effect_scores": "samsvae.evaluation.scores",
    "load": "samsvae.biology.applied",
    "load_model": "samsvae.inference.checkpoint",
    "observed_effects": "samsvae.evaluation.observed",
    "open_screen": "samsvae.screen.canonical",
    "perturbations": "samsvae.screen.canonical",
    "predicted_effects": "samsvae.evaluation.predicted",
    "read_effects": "samsvae.evaluation.effects",
    "read_screen": "samsvae.screen.canonical",
    "read_split": "samsvae.screen.splits",
    "sample_cells": "samsvae.evaluation.samples",
    "with_perturbations": "samsvae.inference.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
