"""Training tasks: the settings of a model, the cells of a split and the training configuration."""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import torch

from samsvae.inference.cell_table import SCANNED_CELLS, CellTable
from samsvae.inference.cells import Cells
from samsvae.inference.checkpoint import StateFile, TrainedModel, save_model
from samsvae.inference.encoding import Covariates, Encoding, sizes_of
from samsvae.inference.machine import explain_out_of_memory
from samsvae.inference.step import Training
from samsvae.inference.streamed import StreamedCells, is_streamed, streamed_cells
from samsvae.inference.trainer import Fitted
from samsvae.models import build_model
from samsvae.models.base import PerturbationModel
from samsvae.runtime.files import read_table_in_parts, write_tsv
from samsvae.runtime.provenance import digest_of, provenance, versions
from samsvae.screen.canonical import CONTEXT, digest_of_screen, open_screen
from samsvae.screen.design import Design
from samsvae.screen.features import PerturbationFeatures
from samsvae.screen.splits import TEXT, TRAIN, VAL, read_split, shuffled_cells
from samsvae.sources.storage import explain_damage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingTask:
    """Settings of a model, cells of a split and training configuration.

    Attributes
    ----------
    settings
        Hyperparameters of the model.
    training
        Training configuration, whose `cells` says how the cells are fed: ``device`` or ``stream``.
    genes
        Genes of the screen.
    encoding
        Encoding of conditions as rows of the model's design matrix.
    covariates
        Encoding of the cells' covariates.
    train, validation
        Cells to fit, and cells to select the best checkpoint by.
    n_replicates
        Number of seeds that are trained as one batched program.
    code, screen
        Digests of the code and of the screen.
    fingerprint
        Digest of everything that the training depends on, the number of threads included.
    features
        Features of the perturbations, for a model whose prior depends on them.
    """

    settings: dict[str, Any]
    training: Training
    genes: list[str]
    encoding: Encoding
    covariates: Covariates
    train: Cells
    validation: Cells
    n_replicates: int
    code: str
    screen: str
    fingerprint: str
    features: PerturbationFeatures | None = None

    @classmethod
    def read(
        cls,
        screen_file: str | Path,
        split_file: str | Path,
        settings: Mapping[str, Any],
        training: Mapping[str, Any],
        seeds: list[int],
        code: str,
        device: torch.device,
    ) -> "TrainingTask":
        """Read the cells, and move to the device those that are not streamed.

        Parameters
        ----------
        screen_file, split_file
            A canonical screen, and a split of it.
        settings
            Hyperparameters of the model.
        training
            Training configuration.
        seeds
            Seeds of the replicates that are trained together.
        code
            Digest of the code.
        device
            Device of the cells.
        """
        how = Training(**training)
        sizes = _sizes(screen_file, split_file)
        streamed = is_streamed(how.cells, screen_file, *sizes, device)
        given = _read_streamed if streamed else _read_whole
        read = given(screen_file, split_file, settings, how, seeds, device)
        for name, levels in read.covariates.levels.items():
            logger.info("covariate %s with %d levels", name, len(levels))
        depends_on = [settings, training, seeds, code, read.screen, versions(), read.parts]
        if streamed:
            depends_on.append("stream")
        if read.features is not None:
            depends_on.append(read.features.values.tolist())
        return cls(
            settings=dict(settings),
            training=replace(how, cells="stream" if streamed else "device"),
            genes=read.genes,
            encoding=read.encoding,
            covariates=read.covariates,
            train=read.train,
            validation=read.validation,
            n_replicates=len(seeds),
            code=code,
            screen=read.screen,
            fingerprint=digest_of([*depends_on, torch.get_num_threads()]),
            features=read.features,
        )

    def build(self) -> PerturbationModel:
        """Build the model with initial weights."""
        sizes = sizes_of(self.encoding, self.covariates)
        return build_model(self.settings, len(self.genes), *sizes, features=self.features)

    def state_file(self, path: Path) -> StateFile:
        """Return the file of the state of the unfinished training."""
        return StateFile(path, self.fingerprint)

    @contextmanager
    def explain_out_of_memory(self, device: torch.device) -> Iterator[None]:
        """Raise an error that names the settings to lower when the device runs out of memory."""
        if isinstance(self.train, StreamedCells):
            fed = f"training.stream_buffer (now {len(self.train.counts)} cells)"
        else:
            fed = "the cells in memory (set training.cells to 'stream')"
        lower = [fed]
        lower += [
            f"training.{key} (now {getattr(self.training, key)})"
            for key in ("batch_size", "particles")
        ]
        lower.append(f"the model's n_hidden (now {self.settings['n_hidden']})")
        if self.n_replicates > 1:
            lower.append(f"the seeds trained together (now {self.n_replicates})")
        with explain_out_of_memory(device, *lower):
            yield

    def save(self, fitted: Fitted, seed: int, folder: Path) -> None:
        """Write history.tsv, model.safetensors and last_model.safetensors of a fitted model."""
        config = {"model": self.settings, "training": asdict(self.training), "seed": seed}
        made_by = provenance(config, self.code, screen=self.screen)
        write_tsv(fitted.history, folder / "history.tsv")
        trained = TrainedModel(
            fitted.model, self.settings, self.genes, self.encoding, self.covariates
        )
        save_model(trained, made_by, folder / "model.safetensors")
        trained.model.load_state_dict(fitted.last_weights)
        save_model(trained, made_by, folder / "last_model.safetensors")


@dataclass(frozen=True)
class _Read:
    """What is read of a screen and a split; `parts` says to which part each cell belongs."""

    genes: list[str]
    encoding: Encoding
    covariates: Covariates
    train: Cells
    validation: Cells
    screen: str
    parts: list[str] | str
    features: PerturbationFeatures | None


def _sizes(screen_file: str | Path, split_file: str | Path) -> tuple[int, int]:
    """Count the training cells of a split, and the genes of the screen."""
    with explain_damage(screen_file), h5py.File(screen_file, "r") as file:
        n_genes = int(file["X"].attrs["shape"][1])
    parts = read_table_in_parts(split_file, SCANNED_CELLS, TEXT)
    return sum(int((part["split"] == TRAIN).sum()) for part in parts), n_genes


def _read_whole(
    screen_file: str | Path,
    split_file: str | Path,
    settings: Mapping[str, Any],
    how: Training,
    seeds: Sequence[int],
    device: torch.device,
) -> _Read:
    """Read all cells of a training, and move them to the device."""
    with open_screen(screen_file) as screen:
        parts = read_split(split_file, screen)
        _shuffle_labels(screen, parts, _seed_of_shuffled_labels(settings, seeds))
        genes = list(screen.var_names) if settings["on_target"] else ()
        design = Design.of_screen(screen)
        is_trained = (parts == TRAIN).to_numpy()
        contexts = None
        if settings.get("context_effects"):
            contexts = screen.obs[CONTEXT].astype(object).where(is_trained)
        encoding = Encoding.of(design, settings["combinations"], genes, contexts)
        logger.info("%d cells, %d genes, device %s", screen.n_obs, screen.n_vars, device)
        covariates = Covariates.of(screen.obs[is_trained], settings["covariates"])
        own = encoding, device, covariates
        return _Read(
            genes=list(screen.var_names),
            encoding=encoding,
            covariates=covariates,
            train=Cells.of(screen, is_trained, *own),
            validation=Cells.of(screen, (parts == VAL).to_numpy(), *own),
            screen=digest_of_screen(screen),
            parts=parts.tolist(),
            features=_features(settings, screen, is_trained, encoding),
        )


def _read_streamed(
    screen_file: str | Path,
    split_file: str | Path,
    settings: Mapping[str, Any],
    how: Training,
    seeds: Sequence[int],
    device: torch.device,
) -> _Read:
    """Prepare to stream the training cells; the design matrix is in memory only for features."""
    table = CellTable.read(screen_file, split_file, settings["covariates"])
    seed = _seed_of_shuffled_labels(settings, seeds)
    if seed is not None:
        table = table.with_shuffled_labels(seed)
    genes = table.genes if settings["on_target"] else ()
    by_context = bool(settings.get("context_effects"))
    encoding = table.encoding(settings["combinations"], genes, by_context)
    logger.info("%d cells, %d genes, device %s", len(table.part), len(table.genes), device)
    covariates = Covariates.of(table.obs.iloc[table.rows(TRAIN)], settings["covariates"])
    sizes = how.batch_size, how.stream_buffer
    train, validation = streamed_cells(screen_file, table, encoding, covariates, *sizes, device)
    features = None
    if settings.get("perturbation_features"):
        with open_screen(screen_file, names=False) as screen:
            _shuffle_labels(screen, pd.Series(table.part), seed)
            features = _features(settings, screen, table.part == TRAIN, encoding)
    return _Read(
        genes=table.genes,
        encoding=encoding,
        covariates=covariates,
        train=train,
        validation=validation,
        screen=table.digest,
        parts=hashlib.sha256(table.part.codes.tobytes()).hexdigest(),
        features=features,
    )


def _seed_of_shuffled_labels(settings: Mapping[str, Any], seeds: Sequence[int]) -> int | None:
    """Return the seed of the permutation for a model that is a negative control, else None."""
    if not settings["shuffle_labels"]:
        return None
    [seed] = seeds  # labels differ by seed
    logger.info("labels are shuffled: this model is a negative control")
    return seed


def _shuffle_labels(screen: anndata.AnnData, parts: pd.Series, seed: int | None) -> None:
    """Permute the conditions of cells, if there is a seed."""
    if seed is not None:
        screen.obsm["dosage"] = screen.obsm["dosage"][shuffled_cells(parts, seed)]


def _features(
    settings: Mapping[str, Any],
    screen: anndata.AnnData,
    is_trained: np.ndarray,
    encoding: Encoding,
) -> PerturbationFeatures | None:
    """Compute the features of perturbations that a model's prior depends on, if it does."""
    if not settings.get("perturbation_features"):
        return None
    return PerturbationFeatures.of_screen(
        settings["perturbation_features"], screen, is_trained, encoding.names,
        settings["feature_components"],
    )  # fmt: skip
