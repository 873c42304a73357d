"""Train models of other packages on a split of the workflow, and write what they predict.

The packages have an environment of their own, in which this module runs as a file. From the folder
of the project::

    python -m venv .venv/peers
    .venv/peers/bin/pip install --requirement benchmarks/peers.txt
    git clone https://github.com/insitro/sams-vae .venv/peers/sams-vae
    .venv/peers/bin/python benchmarks/peers.py authors SCREEN SPLIT data/peers/authors.h5ad

SCREEN and SPLIT are ``screen.h5ad`` and ``split.tsv`` of the workflow. ``authors`` is SAMS-VAE with
correlated embeddings of the authors' code, ``scvi`` is scVI (Lopez et al. 2018) with the condition
of a cell as its batch. Models are trained on the cells of the part ``train`` alone. The output is a
file for a model of kind ``external``: effects of ``authors``, by the authors' estimator with the
library sizes of training cells; cells of ``scvi``, sampled from the posterior of control cells
under each condition. ``peers.yaml`` scores them beside the workflow's own models. One line of JSON
has the test IWELBO with 100 particles in nats, and the time of a training step.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse

CHECKOUT = Path(__file__).resolve().parents[1] / ".venv/peers/sams-vae"
CONTROL, DELIMITER = "control", "+"
PARTICLES = 100  # of the test bound
EMBEDDING_LAYERS = 2
LARGEST_GRADIENT = 100.0  # norm, as in the authors' settings
EVALUATED = 256  # cells or draws at once


class Data:
    """A screen of the workflow with a split.

    Parameters
    ----------
    screen, split
        Files of the workflow.
    """

    def __init__(self, screen: str, split: str) -> None:
        self.screen = anndata.read_h5ad(screen)
        part = pd.read_csv(split, sep="\t", dtype=str).set_index("cell")["split"]
        self.part = part.loc[self.screen.obs_names].to_numpy()
        self.labels = self.screen.obs["perturbation"].astype(str).to_numpy()
        self.conditions = sorted(set(self.labels) - {CONTROL})
        self.names = [str(name) for name in self.screen.uns["perturbations"]]

    def counts(self, part: str) -> torch.Tensor:
        """Return the counts of a part, cells x genes, float32."""
        rows = sparse.csr_matrix(self.screen.X[self.part == part])
        return torch.from_numpy(rows.toarray().astype(np.float32))

    def design(self, labels: list[str]) -> torch.Tensor:
        """Return the design matrix of conditions, conditions x perturbations, 0 or 1."""
        rows = [[name in label.split(DELIMITER) for name in self.names] for label in labels]
        return torch.tensor(rows, dtype=torch.float32)


def timed(steps: int, step: Callable[[], None]) -> dict[str, float]:
    """Take training steps; say what they cost."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return {
        "milliseconds_per_step": round(1000 * (time.perf_counter() - wall) / steps, 2),
        "processor_milliseconds_per_step": round(
            1000 * (time.process_time() - processor) / steps, 2
        ),
    }


def authors(data: Data, given: argparse.Namespace) -> tuple[anndata.AnnData, dict[str, Any]]:
    """Train the authors' SAMS-VAE; predict effects."""
    sys.path.insert(0, str(CHECKOUT))
    from sams_vae import models
    from sams_vae.analysis.average_treatment_effects import (
        estimate_model_average_treatment_effect,
    )
    from sams_vae.data.utils.perturbation_datamodule import ObservationNormalizationStatistics
    from sams_vae.data.utils.perturbation_dataset import SCRNASeqTensorPerturbationDataset

    train, test = data.counts("train"), data.counts("test")
    of_train, of_test = (data.design(list(data.labels[data.part == p])) for p in ("train", "test"))
    logarithm = torch.log(train + 1)
    spread = logarithm.std(0)
    spread[spread == 0] = 1  # a gene without training counts
    statistics = ObservationNormalizationStatistics(log_x_mean=logarithm.mean(0), log_x_std=spread)
    sizes = {
        "n_latent": given.latents, "n_treatments": len(data.names), "n_phenos": train.shape[1],
    }  # fmt: skip
    model = models.SAMSVAEModel(
        **sizes, mask_prior_prob=given.mask_prior, embedding_prior_scale=1.0,
        likelihood_key="library_nb", decoder_n_layers=1, decoder_n_hidden=given.hidden,
    )  # fmt: skip
    guide = models.SAMSVAECorrelatedNormalGuide(
        **sizes, basal_encoder_n_layers=1, basal_encoder_n_hidden=given.hidden,
        basal_encoder_input_normalization="log_standardize",
        embedding_encoder_n_layers=EMBEDDING_LAYERS, embedding_encoder_n_hidden=given.hidden,
        x_normalization_stats=statistics,
    )  # fmt: skip
    loss = models.SAMSVAE_ELBOLossModule(model, guide)
    optimiser = torch.optim.Adam(loss.parameters(), lr=given.learning_rate, weight_decay=1e-6)
    number, library_size = of_train.sum(0), train.sum(1)

    def step() -> None:
        cells = torch.randint(len(train), (given.batch,))
        optimiser.zero_grad()
        value, _ = loss.loss(
            train[cells], of_train[cells], number, {"library_size": library_size[cells]},
            n_particles=given.particles,
        )  # fmt: skip
        value.backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), LARGEST_GRADIENT)
        optimiser.step()

    cost = timed(given.steps, step)
    dataset = SCRNASeqTensorPerturbationDataset(test, of_test)
    loader = torch.utils.data.DataLoader(dataset, batch_size=EVALUATED)
    bounds = models.SAMSVAEPredictor(model, guide).compute_predictive_iwelbo(loader, PARTICLES)
    drawn = library_size[torch.randint(len(train), (given.draws, 1))]
    with torch.no_grad():
        effects = estimate_model_average_treatment_effect(
            model=model, guide=guide, dosages_alt=data.design(data.conditions),
            dosages_control=data.design([CONTROL]), n_particles=given.draws, method="perturbseq",
            condition_values={"library_size": drawn}, batch_size=EVALUATED,
        )  # fmt: skip
    table = anndata.AnnData(
        effects, pd.DataFrame(index=data.conditions), pd.DataFrame(index=data.screen.var_names)
    )
    return table, {"test_iwelbo": float(bounds["IWELBO"].mean()), **cost}


def scvi(data: Data, given: argparse.Namespace) -> tuple[anndata.AnnData, dict[str, Any]]:
    """Train scVI with the condition as batch; sample cells."""
    from scvi.model import SCVI

    cells = anndata.AnnData(
        sparse.csr_matrix(data.screen.X).astype(np.float32),
        pd.DataFrame({"condition": data.labels}, index=data.screen.obs_names),
        pd.DataFrame(index=data.screen.var_names),
    )
    train = cells[data.part == "train"].copy()
    epochs = -(-given.steps * given.batch // len(train))
    SCVI.setup_anndata(train, batch_key="condition")
    model = SCVI(
        train, n_latent=given.latents, n_hidden=given.hidden, n_layers=1, gene_likelihood="nb"
    )
    steps = epochs * -(-len(train) // given.batch)
    plan = {"lr": given.learning_rate, "n_epochs_kl_warmup": max(1, epochs // 3)}

    def fit() -> None:
        model.train(
            max_epochs=epochs, train_size=1.0, batch_size=given.batch, plan_kwargs=plan,
            accelerator="cpu", enable_progress_bar=False, logger=False,
        )  # fmt: skip

    cost = {name: round(value / steps, 2) for name, value in timed(1, fit).items()}
    # a condition without training cells is not known to scVI
    known = [name for name in data.conditions if name in set(train.obs["condition"])]
    test = cells[(data.part == "test") & np.isin(data.labels, [*known, CONTROL])].copy()
    bound = model.get_marginal_ll(test, n_mc_samples=PARTICLES)
    rng = np.random.default_rng(given.seed)
    own = np.flatnonzero(train.obs["condition"] == CONTROL)
    chosen = train[rng.choice(own, given.cells, replace=len(own) < given.cells)]
    sampled = []
    for condition in [CONTROL, *known]:
        of_condition = chosen.copy()
        of_condition.obs_names = [f"{condition}-{number}" for number in range(len(chosen))]
        of_condition.obs["condition"] = pd.Categorical(
            [condition] * len(chosen), train.obs["condition"].astype("category").cat.categories
        )
        drawn = model.posterior_predictive_sample(of_condition)
        of_condition.X = sparse.csr_matrix(np.asarray(drawn.todense()))
        sampled.append(of_condition)
    found = anndata.concat(sampled)
    found.obs["perturbation"] = found.obs["condition"].astype(str)
    return found, {"test_iwelbo": float(np.mean(bound)), **cost}


def main() -> None:
    """Read the options, train, predict, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tool", choices=["authors", "scvi"])
    parser.add_argument("screen")
    parser.add_argument("split")
    parser.add_argument("output", type=Path)
    for name, value in (
        ("seed", 0),
        ("steps", 3000),
        ("batch", 256),
        ("latents", 50),
        ("hidden", 200),
        ("particles", 1),
        ("draws", 2500),
        ("cells", 300),
    ):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--mask-prior", type=float, default=0.01)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_num_threads(1)
    data = Data(given.screen, given.split)
    found, measured = {"authors": authors, "scvi": scvi}[given.tool](data, given)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    found.write_h5ad(given.output)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "scvi-tools")}
    print(json.dumps({"tool": given.tool, "seed": given.seed, **measured, "versions": versions}))


if __name__ == "__main__":
    main()
