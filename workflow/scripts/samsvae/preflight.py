"""Checks that take a moment, done before any job starts.

Imports neither torch nor scanpy, since the Snakefile calls it.
"""

from collections.abc import Mapping
from typing import Any

from samsvae.biology.gene_sets import measured_sets, read_gmt
from samsvae.config import gene_set_names
from samsvae.sources.h5ad import check_header
from samsvae.sources.h5ad_source import H5adSource


def check_inputs(config: Mapping[str, Any]) -> None:
    """Check the files that the experiments need: headers of screens, gene sets.

    Parameters
    ----------
    config
        A validated configuration.

    Raises
    ------
    InputError
        If a file is missing, cannot be what it should be, or a gene-set file shares no gene with
        the screen it would be tested on.
    """
    sizes = {key: config["enrichment"][key] for key in ("min_size", "max_size")}
    genes: dict[str, list[str]] = {}
    for name, experiment in config["experiments"].items():
        screen = config["screens"][experiment["screen"]]
        if screen["source"] == "h5ad" and experiment["screen"] not in genes:
            settings = {key: value for key, value in screen.items() if key != "source"}
            genes[experiment["screen"]] = check_header(H5adSource(**settings))
        for gene_sets in gene_set_names(config, name):
            path = config["gene_sets"].get(gene_sets)
            if path is None:
                continue
            sets = read_gmt(path)
            if experiment["screen"] in genes:
                measured_sets(sets, genes[experiment["screen"]], path, **sizes)
