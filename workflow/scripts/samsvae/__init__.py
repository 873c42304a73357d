"""Deep generative models of single-cell CRISPR screens, and their evaluation.

The floors, from the ground up (imports go down only):

- :mod:`samsvae.screen`: the canonical screen, what every later stage may rely on
- :mod:`samsvae.sources`, :mod:`samsvae.splits`: where cells come from, which of them train
- :mod:`samsvae.models`: the generative models and their guides
- :mod:`samsvae.inference`: objective, training, importance-weighted bounds
- :mod:`samsvae.effects`: observed and predicted average treatment effects
- :mod:`samsvae.metrics`, :mod:`samsvae.biology`: how good they are, and what they say of genes
- :mod:`samsvae.statistics`: how sure the scores are, and which model is better
- :mod:`samsvae.figures`, :mod:`samsvae.report`: what a reader is shown

Beside them, :mod:`samsvae.inspection` looks at a screen before anything is trained, and
:mod:`samsvae.chain` follows a result back to the data.
"""

__version__ = "0.1.0"
