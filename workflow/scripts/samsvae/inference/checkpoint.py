"""A trained model in one self-describing safetensors file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from samsvae.files import whole_file
from samsvae.inference.encoding import Encoding
from samsvae.models.base import PerturbationModel
from samsvae.models.registry import build_model


@dataclass(frozen=True)
class TrainedModel:
    """A model with the names of what it models.

    Attributes
    ----------
    model
        Model and guide, in evaluation mode.
    settings
        Its entry in the configuration.
    genes
        Gene symbols, in the order of the model's outputs.
    encoding
        Its perturbations.
    """

    model: PerturbationModel
    settings: dict[str, Any]
    genes: list[str]
    encoding: Encoding


def save_model(trained: TrainedModel, provenance: str, path: str | Path) -> None:
    """Write a trained model, whole or not at all."""
    metadata = {
        "settings": json.dumps(trained.settings, sort_keys=True),
        "genes": json.dumps(trained.genes),
        "perturbations": json.dumps(trained.encoding.names),
        "provenance": provenance,
    }
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in trained.model.state_dict().items()
    }
    with whole_file(path) as temporary:
        save_file(weights, temporary, metadata=metadata)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> TrainedModel:
    """Read what :func:`save_model` wrote."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(metadata["settings"])
    genes = json.loads(metadata["genes"])
    encoding = Encoding(tuple(json.loads(metadata["perturbations"])), settings["combinations"])
    model = build_model(settings, len(genes), len(encoding.names)).to(device)
    model.load_state_dict(weights)
    return TrainedModel(model.eval(), settings, genes, encoding)
