"""Sources of screens, by the name that the configuration calls them.

It imports no source, so that the Snakefile starts fast and a rule's code digest includes its own
source alone.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from samsvae.config.screens import SOURCES
from samsvae.runtime.files import fingerprint

if TYPE_CHECKING:
    from anndata import AnnData

# module of each simulator, its class of settings, and the function that makes a screen of them
SIMULATORS = {name: source.simulator for name, source in SOURCES.items() if source.simulator}
# those that name programmes of genes, and so bring gene sets
WITH_PROGRAMMES = tuple(name for name, source in SOURCES.items() if source.brings_gene_sets)
# those that make cells for each part of a split
DIVIDED_BY_SOURCE = tuple(name for name, source in SOURCES.items() if source.divides_cells)
# those whose cells have Gaussian measurements in place of counts
GAUSSIAN = tuple(name for name, source in SOURCES.items() if not source.has_counts)
# published screens, each kept in two copies
PUBLISHED = tuple(name for name, source in SOURCES.items() if source.is_published)

DOWNLOADS_FOLDER = "data/downloads"


def own_settings(screen: Mapping[str, Any], *others: str) -> dict[str, Any]:
    """Select the settings of a screen's entry that its cells are made of, but for `others`."""
    left_out = ("source", "perturbation_kind", *others)
    return {key: value for key, value in screen.items() if key not in left_out}


def simulated_screen(screen: Mapping[str, Any]) -> tuple["AnnData", dict[str, list[str]]]:
    """Simulate the screen of an entry of the configuration.

    Parameters
    ----------
    screen
        A validated entry whose source is a simulator.

    Returns
    -------
    screen : AnnData
        With the truth in ``uns["truth"]``.
    gene_sets : dict of list of str
        Gene sets that the simulation brings, if any.
    """
    name, settings, simulate = SIMULATORS[screen["source"]]
    module = importlib.import_module(name)
    return getattr(module, simulate)(getattr(module, settings)(**own_settings(screen)))


def files_of(screen: Mapping[str, Any]) -> dict[str, str]:
    """Return the user's files of a screen's entry, by configuration key."""
    return {key: screen[key] for key in ("path", "guide_table", "genes") if screen.get(key)}


def fingerprints_of(screen: Mapping[str, Any]) -> dict[str, str]:
    """Compute fingerprints of the user's files, which detect replaced files of any date."""
    return {key: fingerprint(path) for key, path in files_of(screen).items()}
