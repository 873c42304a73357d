"""Training tasks: the settings of a model, the cells of a split and the training configuration."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from samsvae.inference.cells import Cells, Covariates, Encoding, sizes_of
from samsvae.inference.checkpoint import StateFile, TrainedModel, save_model
from samsvae.inference.machine import explain_out_of_memory
from samsvae.inference.step import Training
from samsvae.inference.trainer import Fitted
from samsvae.models import build_model
from samsvae.models.base import PerturbationModel
from samsvae.runtime.files import write_tsv
from samsvae.runtime.provenance import digest_of, provenance, versions
from samsvae.screen.canonical import CONTEXT, digest_of_screen, open_screen
from samsvae.screen.design import Design
from samsvae.screen.features import PerturbationFeatures
from samsvae.screen.splits import TRAIN, VAL, read_split, shuffled_cells


@dataclass(frozen=True)
class TrainingTask:
    """Settings of a model, cells of a split and training configuration.

    Attributes
    ----------
    settings
        Hyperparameters of the model.
    training
        Training configuration.
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
        """Read the cells and move them to the device.

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
        with open_screen(screen_file) as screen:
            parts = read_split(split_file, screen)
            if settings["shuffle_labels"]:
                [seed] = seeds  # labels differ by seed
                logging.info("labels are shuffled: this model is a negative control")
                screen.obsm["dosage"] = screen.obsm["dosage"][shuffled_cells(parts, seed)]
            genes = list(screen.var_names) if settings["on_target"] else ()
            design = Design.of_screen(screen)
            is_trained = (parts == TRAIN).to_numpy()
            contexts = None
            if settings.get("context_effects"):
                contexts = screen.obs[CONTEXT].astype(object).where(is_trained)
            encoding = Encoding.of(design, settings["combinations"], genes, contexts)
            logging.info("%d cells, %d genes, device %s", screen.n_obs, screen.n_vars, device)
            covariates = Covariates.of(screen.obs[is_trained], settings["covariates"])
            for name, levels in covariates.levels.items():
                logging.info("covariate %s with %d levels", name, len(levels))
            own = encoding, device, covariates
            features = None
            if settings.get("perturbation_features"):
                features = PerturbationFeatures.of_screen(
                    settings["perturbation_features"], screen, is_trained, encoding.names,
                    settings["feature_components"],
                )  # fmt: skip
            digest = digest_of_screen(screen)
            depends_on = [settings, training, seeds, code, digest, versions(), parts.tolist()]
            if features is not None:
                depends_on.append(features.values.tolist())
            return cls(
                settings=dict(settings),
                training=Training(**training),
                genes=list(screen.var_names),
                encoding=encoding,
                covariates=covariates,
                train=Cells.of(screen, is_trained, *own),
                validation=Cells.of(screen, (parts == VAL).to_numpy(), *own),
                n_replicates=len(seeds),
                code=code,
                screen=digest,
                fingerprint=digest_of([*depends_on, torch.get_num_threads()]),
                features=features,
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
        lower = [
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
