"""Checks that take a moment, done before any job starts.

Imports neither torch nor scanpy, since the Snakefile calls it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samsvae.biology.gene_sets import measured_sets, read_gmt
from samsvae.config.configuration import gene_set_names
from samsvae.errors import InputError
from samsvae.sources.registry import DOWNLOADS_FOLDER, download_of, own_settings
from samsvae.sources.verification import PublishedFile, check_file_size


def check_inputs(config: Mapping[str, Any]) -> None:
    """Check the files that the experiments need: screens by header or size, gene sets, groups.

    A published file that is not there yet is no fault, and none is read through.

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
            # anndata takes as long to import as a small configuration to plan
            from samsvae.sources.h5ad import check_header
            from samsvae.sources.h5ad_source import H5adSource

            genes[experiment["screen"]] = check_header(H5adSource(**own_settings(screen)))
        download = download_of(screen)
        if download is not None:
            _check_published(screen["path"], PublishedFile.of(config["downloads"][download]))
            listed = screen.get("genes")
            if listed is not None and not Path(listed).is_file():
                raise InputError(f"{listed}: no such file. Set 'genes' to a list, or to null.")
        if experiment["perturbation_groups"] is not None:
            read_gmt(experiment["perturbation_groups"])
        for gene_sets in gene_set_names(config, name):
            path = config["gene_sets"].get(gene_sets)
            if path is None:
                continue
            sets = read_gmt(path)
            if experiment["screen"] in genes:
                measured_sets(sets, genes[experiment["screen"]], path, **sizes)


def _check_published(path: str | None, published: PublishedFile) -> None:
    downloaded = Path(DOWNLOADS_FOLDER, published.file)
    if path is not None or downloaded.exists():
        check_file_size(path or downloaded, published)
