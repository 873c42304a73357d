"""Fast checks of files while Snakemake plans jobs.

The module does not import torch, since the Snakefile imports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samsvae.biology.gene_sets import measured_sets, read_gmt
from samsvae.config.configuration import gene_set_names
from samsvae.config.experiments import expanded
from samsvae.config.models import EXPRESSION
from samsvae.config.screens import download_of
from samsvae.runtime.errors import InputError
from samsvae.sources import DOWNLOADS_FOLDER, own_settings
from samsvae.sources.verification import PublishedFile, check_file_size


def check_experiment(config: Mapping[str, Any], name: str) -> None:
    """Check the files of an experiment: screen by header or size, gene sets, groups, features.

    A published file may be missing, since a rule downloads it; no file is read completely.

    Parameters
    ----------
    config
        A validated configuration.
    name
        Name of the experiment.

    Raises
    ------
    InputError
        If a file is missing or invalid, or a gene set file has no gene in common with the screen.
    """
    experiment = config["experiments"][name]
    genes = check_screen_file(config, experiment["screen"])
    if experiment["perturbation_groups"] is not None:
        read_gmt(experiment["perturbation_groups"])
    models = expanded(config["models"])
    sources = [models[one].get("perturbation_features") for one in experiment["models"]]
    for table in dict.fromkeys(path for path in sources if path and path != EXPRESSION):
        from samsvae.screen.features import read_features  # imports anndata, as above

        read_features(table)
    sizes = {key: config["enrichment"][key] for key in ("min_size", "max_size")}
    for gene_sets in gene_set_names(config, name):
        path = config["gene_sets"].get(gene_sets)
        if path is None:
            continue
        sets = read_gmt(path)
        if genes is not None:
            measured_sets(sets, genes, path, **sizes)


def check_screen_file(config: Mapping[str, Any], name: str) -> list[str] | None:
    """Check the existing files of a screen.

    Parameters
    ----------
    config
        A validated configuration.
    name
        Name of the screen.

    Returns
    -------
    list of str or None
        Genes of the user's own file; None for other sources.

    Raises
    ------
    InputError
        If a file is missing or invalid.
    """
    screen = config["screens"][name]
    if screen["source"] == "h5ad":
        # importing anndata takes as long as planning a small configuration
        from samsvae.sources.h5ad import check_header
        from samsvae.sources.h5ad_source import H5adSource

        return check_header(H5adSource(**own_settings(screen)))
    download = download_of(screen)
    if download is not None:
        _check_published(screen["path"], PublishedFile.of(config["downloads"][download]))
        listed = screen.get("genes")
        if listed is not None and not Path(listed).is_file():
            raise InputError(f"{listed}: no such file. Set 'genes' to a list, or to null.")
    return None


def _check_published(path: str | None, published: PublishedFile) -> None:
    downloaded = Path(DOWNLOADS_FOLDER, published.file)
    if path is not None or downloaded.exists():
        check_file_size(path or downloaded, published)
