"""Fast checks of files while Snakemake plans jobs.

The module does not import torch, since the Snakefile imports it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from samsvae.config.configuration import gene_set_names
from samsvae.config.experiments import (
    Run,
    expanded,
    given_split,
    is_external,
    prediction_path,
    runs,
)
from samsvae.config.models import EXPRESSION
from samsvae.config.screens import download_of
from samsvae.runtime.errors import InputError
from samsvae.screen.gene_sets import measured_sets, read_gmt
from samsvae.sources import DOWNLOADS_FOLDER, own_settings
from samsvae.sources.verification import PublishedFile, check_file_size


def check_experiment(config: Mapping[str, Any], name: str) -> None:
    """Check the files of an experiment.

    The screen by header or size, gene sets, groups, features, and the table of a split. A
    published file may be missing, since a rule downloads it; no count is read.

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
    for seed in experiment["split"]["seeds"]:
        split = given_split(experiment, seed)
        if "table" in split:
            from samsvae.screen.given_splits import read_given_table  # as above

            read_given_table(split["table"])
    sizes = {key: config["enrichment"][key] for key in ("min_size", "max_size")}
    for gene_sets in gene_set_names(config, name):
        path = config["gene_sets"].get(gene_sets)
        if path is None:
            continue
        sets = read_gmt(path)
        if genes is not None:
            measured_sets(sets, genes, path, **sizes)


def check_predictions(config: Mapping[str, Any], name: str) -> None:
    """Check the files with an experiment's predictions of other tools, apart from the screen.

    Parameters
    ----------
    config
        A validated configuration.
    name
        Name of the experiment.

    Raises
    ------
    InputError
        Naming all files that are missing, or the first that is not valid.
    """
    models = expanded(config["models"])
    files: dict[str, Run] = {}
    for run in runs(config["experiments"][name], models):
        if is_external(models[run.model]):
            files.setdefault(prediction_path(models[run.model], name, run), run)
    missing = [path for path in files if not Path(path).is_file()]
    if missing:
        first = files[missing[0]]
        raise InputError(
            f"models.{first.model}.path: no such file: {', '.join(missing)} (sought in "
            f"{Path.cwd()}). The predictions of experiments.{name} are needed there; the cells of "
            f"each part are in results/{name}/{first.split}/split.tsv, which can be made before."
        )
    for path, run in files.items():
        from samsvae.evaluation.external import PredictionFile  # imports anndata, as above

        PredictionFile.of(path, models[run.model]).check()


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
