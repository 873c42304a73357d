"""Checkpoints: trained models, and the states of unfinished trainings."""

import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samsvae.config.models import EXPRESSION
from samsvae.inference.encoding import NO_COVARIATES, Covariates, Encoding, sizes_of
from samsvae.models import build_model
from samsvae.models.base import PerturbationModel
from samsvae.runtime.errors import InputError
from samsvae.runtime.files import whole_file
from samsvae.screen.features import PerturbationFeatures, check_covered, read_features

SAME_FEATURES = 1e-4  # absolute difference of components of features that are the same

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedModel:
    """Trained model with its genes and perturbations.

    Attributes
    ----------
    model
        Model and guide, in evaluation mode.
    settings
        Its entry in the configuration.
    genes
        Gene symbols, in the order of the model's outputs.
    encoding
        Encoding of its perturbations.
    covariates
        Encoding of its covariates.
    """

    model: PerturbationModel
    settings: dict[str, Any]
    genes: list[str]
    encoding: Encoding
    covariates: Covariates = NO_COVARIATES

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        return self.model.standardise.mean.device


def save_model(trained: TrainedModel, provenance: str, path: str | Path) -> None:
    """Write a trained model atomically."""
    metadata = {
        "settings": json.dumps(trained.settings, sort_keys=True),
        "genes": json.dumps(trained.genes),
        "perturbations": json.dumps(trained.encoding.names),
        "covariates": json.dumps(asdict(trained.covariates)),
        "targets": json.dumps(trained.encoding.targets),
        "in_contexts": json.dumps(trained.encoding.in_contexts),
        "n_features": json.dumps(trained.model.n_features),
        "provenance": provenance,
    }
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in trained.model.state_dict().items()
    }
    with whole_file(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Load a model that :func:`save_model` wrote."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    genes = json.loads(metadata["genes"])
    names = tuple(json.loads(metadata["perturbations"]))
    targets, in_contexts = (
        tuple(tuple(pair) for pair in json.loads(metadata[key]))
        for key in ("targets", "in_contexts")
    )
    encoding = Encoding(names, settings["combinations"], targets, in_contexts)
    covariates = Covariates(**json.loads(metadata["covariates"]))
    features = _blank_features(len(names), json.loads(metadata.get("n_features", "null")))
    sizes = sizes_of(encoding, covariates)
    model = build_model(settings, len(genes), *sizes, features=features).to(device)
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), settings, genes, encoding, covariates)


def _blank_features(n_perturbations: int, n_features: int | None) -> PerturbationFeatures | None:
    """Make room for the features of a model, whose values are among its weights."""
    if n_features is None:
        return None
    values = np.zeros((n_perturbations, n_features))
    return PerturbationFeatures(values, np.zeros(n_perturbations, dtype=bool))


def restrict_genes(trained: TrainedModel, genes: Collection[str]) -> TrainedModel:
    """Restrict a model to some of its genes, for cells in which the others were not measured.

    The model of the counts of some genes, given their sum, has the same decoder with the outputs of
    these genes alone: the softmax renormalises. The encoder takes missing genes at their mean over
    training cells. On-target effects on missing genes are left out.

    Parameters
    ----------
    trained
        The model.
    genes
        Measured genes. The model keeps those of its genes that are among them.

    Returns
    -------
    TrainedModel
        With these genes, in the order of the model; library sizes are sums over them.
    """
    given = set(genes)
    kept = [at for at, gene in enumerate(trained.genes) if gene in given]
    if len(kept) == len(trained.genes):
        return trained
    position = {at: index for index, at in enumerate(kept)}
    of_pairs = trained.encoding.targets
    pairs = [at for at, (_, gene) in enumerate(of_pairs) if gene in position]
    targets = tuple((of_pairs[at][0], position[of_pairs[at][1]]) for at in pairs)
    encoding = replace(trained.encoding, targets=targets)
    sizes = sizes_of(encoding, trained.covariates)
    features = _blank_features(len(encoding.names), trained.model.n_features)
    model = build_model(trained.settings, len(kept), *sizes, features=features)
    model = model.to(trained.device)
    weights = model.state_dict()
    for name, new in weights.items():
        old = trained.model.state_dict()[name]
        if name == "on_target.gene":
            continue
        chosen = torch.tensor(pairs if name.startswith("on_target.") else kept, device=old.device)
        # the sizes that differ are those of genes, or of pairs of a perturbation and its target
        for dimension, (size, new_size) in enumerate(zip(old.shape, new.shape, strict=True)):
            if size != new_size:
                old = old.index_select(dimension, chosen)
        weights[name] = old
    model.load_state_dict(weights)
    return TrainedModel(
        model.eval(), trained.settings, [trained.genes[at] for at in kept], encoding,
        trained.covariates,
    )  # fmt: skip


def with_perturbations(
    trained: TrainedModel, names: Sequence[str], table: str | Path
) -> TrainedModel:
    """Add perturbations that no cell of the screen has, to predict their effects.

    Parameters
    ----------
    trained
        A model with a table of features of perturbations.
    names
        Perturbations that the model does not have.
    table
        Table of features in which perturbations are added to those that the model was trained with.

    Returns
    -------
    TrainedModel
        A copy with further perturbations, whose guide is their prior given their features.

    Raises
    ------
    InputError
        If the model has no such features or has effects in contexts, if it has a perturbation
        already, or if the table lacks one or has other features than those of the training.
    """
    model, encoding = trained.model, trained.encoding
    source = trained.settings.get("perturbation_features")
    if source in (None, EXPRESSION) or encoding.in_contexts:
        raise InputError(
            "Perturbations can be added to a model with a table as its perturbation_features, and "
            f"without context_effects; this one has {source!r}"
            + (" and context_effects." if encoding.in_contexts else ".")
        )
    known = [name for name in names if name in encoding.names]
    if known:
        raise InputError(f"The model has {', '.join(map(repr, known))} already; leave it out.")
    weights = model.state_dict()
    every = [*encoding.names, *names]
    features = read_features(table)
    check_covered(features, every, table)
    is_trained = np.zeros(len(every), dtype=bool)
    is_trained[: len(encoding.names)] = weights["features.is_trained"][:, 0].cpu().numpy()
    values = PerturbationFeatures.of(
        features.loc[every].to_numpy(), is_trained, trained.settings["feature_components"]
    )
    size = len(trained.genes), len(every), len(trained.covariates)
    larger = build_model(trained.settings, *size, features=values).to(trained.device)
    content = larger.state_dict()
    found, expected = content["features.values"], weights["features.values"]
    is_same = found.shape[1] == expected.shape[1] and torch.allclose(
        found[: len(expected)], expected, atol=SAME_FEATURES
    )
    if not is_same:
        raise InputError(
            f"perturbation_features: {table} has other features of the perturbations that the "
            "model was trained with. Add rows to the table of the training, and change no others."
        )
    for name, tensor in content.items():
        if name != "features.values":  # of further perturbations: rows that are not used
            tensor[tuple(map(slice, weights[name].shape))] = weights[name]
    larger.load_state_dict(content)
    added = replace(encoding, names=tuple(every))
    return replace(trained, model=larger.eval(), encoding=added)


@dataclass(frozen=True)
class StateFile:
    """File of the state of a training.

    Attributes
    ----------
    path
        A safetensors file, which exists only while the training is unfinished.
    fingerprint
        Digest of the data, configuration and code that the training depends on. A state with
        another fingerprint is not resumed.
    """

    path: Path
    fingerprint: str

    def save(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Save tensors and JSON-like values atomically."""
        metadata = {"fingerprint": self.fingerprint, "values": json.dumps(values)}
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with whole_file(self.path) as temporary:
            save_file(content, temporary, metadata=metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Load what :meth:`save` wrote; None if there is nothing to resume."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata["fingerprint"] != self.fingerprint:
                    logger.info(
                        "%s is not resumed: its data, configuration or code differ", self.path
                    )
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return tensors, json.loads(metadata["values"])
        except (SafetensorError, KeyError, OSError, json.JSONDecodeError) as error:
            logger.info("%s is not resumed: it cannot be read (%s)", self.path, error)
            return None

    def remove(self) -> None:
        """Remove the file of a finished training."""
        self.path.unlink(missing_ok=True)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten the state of an optimiser to named tensors."""
    return {
        f"optimiser.{parameter}.{key}": value
        for parameter, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def set_optimiser_tensors(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Set what :func:`optimiser_tensors` flattened."""
    content = optimiser.state_dict()
    content["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, parameter, key = name.split(".")
            content["state"].setdefault(int(parameter), {})[key] = value
    learning_rates = [group["lr"] for group in optimiser.param_groups]
    optimiser.load_state_dict(content)
    # a loaded learning rate is a copy, which would not follow the schedule
    for group, learning_rate in zip(optimiser.param_groups, learning_rates, strict=True):
        group["lr"] = learning_rate


def add_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add a prefix to every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def remove_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names have a prefix, and remove it."""
    start = f"{prefix}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
