"""The configuration as a whole, and its sections beside screens and models.

Run as a module, it prints the JSON schema as it stands in ``workflow/schemas/config.schema.yaml``,
for readers and editors; the workflow itself asks :func:`json_schema`. Imports neither torch nor
scanpy, since the Snakefile imports it.
"""

import functools
from collections.abc import Iterable
from typing import Annotated, Literal

import yaml
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from samsvae.config.models import BASELINES, CEILINGS, EXTERNAL, KINDS, ModelKind
from samsvae.config.schema import (
    OF_SEED,
    UNIQUE,
    Count,
    FilePath,
    Name,
    NotNegative,
    Positive,
    Probability,
    Schema,
    Section,
    Seeds,
    Words,
    choice,
    definition,
)
from samsvae.config.screens import SOURCES, Download, Source

GeneSetFile = Annotated[
    FilePath,
    Field(max_length=4096, description="A path, in one line and without braces."),
]

# Keys under their former names, which the next version no longer knows; "*" is any name.
RENAMED = {
    ("training",): {
        "open_masks": "mask_warmup_fraction",
        "mask_kl_per_cell": "mask_kl_weight",
    },
    ("screens", "*"): {
        "targets": "factors_per_perturbation",
        "expected_targets": "expected_target_genes",
    },
}

DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Training(Section):
    """How the trained models are fitted."""

    max_steps: Count = Field(3000, description="Gradient steps.")
    batch_size: Count = Field(256, description="Cells in a minibatch.")
    particles: Count = Field(5, description="Samples of the latent variables in each step.")
    learning_rate: Positive = Field(0.003, description="Largest step size of Adam.")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description='"constant", or "cosine": the learning rate falls to 0 over max_steps.',
    )
    warm_up_steps: NotNegative = Field(
        0, description="Steps over which the learning rate rises from 0."
    )
    weight_decay: float = Field(0.000001, ge=0, description="Weight decay of Adam.")
    gradient_clip: Positive | None = Field(
        100, description="Largest norm of the gradient; null for no limit."
    )
    objective: Literal["elbo", "iwae"] = Field(
        "elbo",
        description='"elbo", or "iwae": the importance-weighted bound of each cell over the '
        "particles.",
    )
    mask_kl: Literal["sampled", "exact"] = Field(
        "sampled",
        description='The KL of a mask at its sample ("sampled"), or in closed form ("exact").',
    )
    mask_warmup_fraction: float = Field(
        0.2,
        ge=0,
        lt=0.5,
        description="Fraction of the steps during which masks are held at 1. Then latent space is "
        "rotated to the axes on which effects are sparsest, masks are learnt, and only steps of "
        "the second half may be chosen. 0 for the paper's training.",
    )
    mask_start: Literal["evidence", "half"] = Field(
        "evidence",
        description='Where masks start after their warm-up. "evidence": at the posterior '
        "probability that a perturbation moves a latent dimension, given the states that the "
        "encoder infers of the training cells, and so once more after half of the steps. "
        '"half": at a probability of 1/2, for which a mask_kl_weight of 0.02 keeps masks sparse.',
    )
    mask_kl_weight: float = Field(
        0.0,
        ge=0,
        description="The KL of masks weighs this times N / T (training cells by perturbations) in "
        "the loss, but at least 1. So w asks an entry of the mask to explain about "
        "w log((1 - p) / p) nats in every cell of its perturbation. Reported bounds are never "
        "weighted. 0 for the paper's objective.",
    )
    validate_every: Count = Field(
        250, description="Steps between evaluations on the validation cells."
    )
    patience: Count | None = Field(
        None,
        description="Evaluations without a better bound of the validation cells after which "
        "training stops; null to take every step.",
    )
    seeds_together: bool = Field(
        False,
        description="Whether all seeds of a model on a split are trained in one job, as one "
        "batched program, and evaluated in one: faster than one by one where the model is small. "
        "Each ends as it would alone, but for rounding. Models with `shuffle_labels` or "
        "`rate_guide: beta` are always trained one by one.",
    )
    matmul_precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description='How float32 matrices are multiplied: exactly, or as "tf32" or "bfloat16", '
        "faster and less precise, where the device can.",
    )
    cuda_graph: bool = Field(
        True,
        description="Whether the step is recorded once on a CUDA device and replayed as a graph.",
    )
    cells: Literal["auto", "device", "stream"] = Field(
        "auto",
        description='Where the counts of the training cells are. "device": in the memory of the '
        'device that trains. "stream": in the screen\'s file, from which blocks of cells are read '
        'while the device computes; memory does not depend on their number. "auto": streamed if '
        "they would take more than half of the memory available.",
    )
    stream_buffer: Count | None = Field(
        None,
        description="Training cells that are in memory and shuffled at a time if they are "
        "streamed, at least a minibatch; null for as many as 48 MiB hold, and at least 32,768. "
        "More cells mix better, and take more memory.",
    )


class Evaluation(Section):
    """How trained models and baselines are evaluated."""

    iwelbo_particles: Count = Field(
        100, description="Particles Q of the importance-weighted bound."
    )
    max_candidates: Count = Field(
        24,
        description="Largest number of candidates of a model's grid; a larger one is refused, "
        "lest a slip start a thousand trainings.",
    )
    effect_estimator: Literal["integrated", "sampled"] = Field(
        "integrated",
        description='How effects are predicted: "integrated" gives treatment and control arm the '
        'same samples of the latent variables, and integrates the counts out; "sampled", the '
        "paper's way, samples basal states anew for each arm, and counts of 10,000 in a cell. The "
        "first has far less noise with far fewer samples.",
    )
    effect_library_size: Count | None = Field(
        10_000,
        description="Counts of the cells whose effects are predicted, 10,000 in the paper; null "
        "for the library sizes of the held-out cells (ten quantiles). Effects on log2(CP10k + 1) "
        "depend on it, since most genes have no count in a shallow cell. Observed effects are "
        "those of cells as they are, so null is what to compare with them.",
    )
    effect_draws: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Samples of the latent variables for a predicted effect; null for 100, or for "
        '2,500 if they are "sampled".',
    )
    interval_draws: NotNegative = Field(
        50,
        description="Samples of masks and embeddings from each training seed for the posterior "
        "intervals of predicted effects, and their coverage of effects among held-out cells; 0 for "
        "no intervals.",
    )
    exported_cells: Count = Field(
        500,
        description="Cells of each perturbation, and of control, that a model or baseline gives "
        "cell-eval, made on request. The mean of few sampled cells is noisy and scores below what "
        "the model predicts.",
    )
    scored_cells: NotNegative = Field(
        200,
        description="Cells of a perturbation that are sampled from each model and compared with "
        "held-out cells, by the rules vcc2026 and by distances of distributions: as many as are "
        "held out, and at most this number; 0 for no such scores.",
    )
    sampled_cells: Count = Field(
        100,
        description="Cells of each perturbation in sampled_cells.h5ad, which is made on request.",
    )
    sample_from: Literal["posterior", "prior"] = Field(
        "posterior",
        description='Where those cells\' masks and effects come from: "posterior", what training '
        'has learnt of them, or "prior", what the model assumes beforehand.',
    )
    cell_particles: Count = Field(
        25,
        description="Particles of the bounds and responder scores of all cells, in cells.h5ad.",
    )
    mapped_cells: NotNegative = Field(
        3000,
        description="Cells, of those that were not trained on, whose latent states are laid out "
        "by UMAP, at most; 0 for no figure by UMAP, of cells or of perturbations.",
    )
    top_genes: Count = Field(
        20, description='Genes of largest observed effect in the "top" metrics.'
    )
    effects: Literal["stratified", "plain"] | None = Field(
        None,
        description='Observed effects and tests of all cells: "stratified", within batches, or '
        '"plain", the paper\'s; null for stratified wherever a screen has batches, where the plain '
        "ones are kept beside them.",
    )
    min_controls_per_batch: Count = Field(
        10,
        description="Smallest number of control cells of a batch whose cells are compared in "
        "stratified effects and tests.",
    )
    depth_bins: Count = Field(
        1,
        description="Bins of the library size within batches that stratified tests compare, too; "
        "1 for none. Of use where cells with a guide are deeper than those without.",
    )
    min_cells_null: Count = Field(
        30, description="Smallest number of cells of a group of control cells that is tested."
    )
    min_cells_guide: Count = Field(
        20, description="Smallest number of cells of a guide whose effect is compared."
    )
    correction: Literal["holm", "bh"] = Field(
        "holm",
        description="How p-values of the differences between every two models are corrected: "
        '"holm" bounds the chance of one false claim among them, "bh" the proportion of false '
        "claims (Benjamini-Hochberg).",
    )
    significance: Probability = Field(
        0.05, description="Corrected p-value below which one model is called better than another."
    )
    fdr: Probability = Field(
        0.05,
        description="False discovery rate below which a gene counts as differentially expressed, a "
        "perturbation as a hit, a gene set as enriched, and an effect as non-additive or different "
        "between contexts.",
    )


class Enrichment(Section):
    """Gene-set enrichment of observed and predicted effects."""

    top_genes: Count = Field(
        30, description="Genes of largest absolute effect tested for over-representation."
    )
    min_size: Count = Field(
        5, description="Smallest number of measured genes of a set that is tested."
    )
    max_size: Count = Field(
        500, description="Largest number of measured genes of a set that is tested."
    )
    max_perturbations: Count = Field(
        100, description="Perturbations tested, those of largest observed effect."
    )
    permutations: Annotated[int, Field(ge=10)] = Field(
        1000, description="Random gene sets behind a normalised enrichment score."
    )


class Split(Section):
    """Which cells train, validate and test."""

    kind: Literal[
        "random",
        "unseen_combinations",
        "data_efficiency",
        "unseen_contexts",
        "leave_context_out",
        "unseen_perturbations",
        "as_simulated",
        "from_column",
        "from_table",
    ] = Field(
        description='"random": 64/16/20 % of all cells. "unseen_combinations": a quarter of the '
        "pairs is tested, and a fraction of all pairs trained on; up to 0.75 these are others, "
        "with 1 the tested pairs are trained on by cells of their own. "
        '"data_efficiency": a fraction of the pairs\' training cells is used. "unseen_contexts": '
        "a fraction of the pairs of a perturbation and a context is trained on, and the cells of "
        "the others are tested; every perturbation is trained on in some context, and every "
        'context has trained perturbations. "leave_context_out": the perturbed cells of a context '
        "are tested, whose control cells are trained on. "
        '"unseen_perturbations": a fraction of the single perturbations is trained on, and all '
        "cells with any of the others, in combinations, too, are tested; trained models need "
        "perturbation_features. "
        '"as_simulated": the '
        "cells that simulated_additive and simulated_svae_plus made for each part. "
        '"from_column" and "from_table": a split that was made elsewhere, from a column of obs or '
        "a table of cells."
    )
    seeds: Seeds = Field([0], description="Seeds of the split.")
    fractions: (
        Annotated[
            list[Annotated[float, Field(ge=0, le=1)]],
            Field(min_length=1, json_schema_extra=UNIQUE),
        ]
        | SkipJsonSchema[None]
    ) = Field(
        None,
        description="Fractions of pairs, or of the pairs' training cells, or of perturbations, "
        'that may be trained on; for "unseen_combinations", "data_efficiency", "unseen_contexts" '
        'and "unseen_perturbations" alone.',
    )
    contexts: (
        Annotated[list[str], Field(min_length=1, json_schema_extra=UNIQUE)] | SkipJsonSchema[None]
    ) = Field(
        None,
        description='Contexts to leave out, each in a split of its own; for "leave_context_out" '
        "alone.",
    )
    column: Annotated[str, Field(pattern=OF_SEED)] | SkipJsonSchema[None] = Field(
        None,
        description="Column of obs with the part of each cell, a word without braces but for "
        '{seed}, where there is a column for each seed; for "from_column" alone. A screen of the '
        'source "h5ad" keeps it.',
    )
    table: Annotated[str, Field(pattern=OF_SEED)] | SkipJsonSchema[None] = Field(
        None,
        description="Table of the columns cell and part (or split), comma-separated if it ends in "
        ".csv, else tab-separated; a path without braces but for {seed}, where there is a table "
        'for each seed; for "from_table" alone.',
    )
    parts: dict[str, Literal["train", "val", "test", "unused"]] | SkipJsonSchema[None] = Field(
        None,
        description="What words of the column or table mean beside train, val, test and unused, "
        "such as {valid: val, ood: test}. Then cells with any other word are unused; without it, "
        "another word is an error. Cells without a word are unused.",
    )
    untrained_perturbations: Literal["refuse", "keep_prior"] = Field(
        "refuse",
        description='What to do if a gene is targeted in no training cell: "refuse" the split, or '
        '"keep_prior", so that models know nothing of it but their prior. Without meaning for '
        '"unseen_perturbations", which holds genes out on purpose.',
    )


class Experiment(Section):
    """Models on the splits of one screen."""

    screen: str = Field(description="Name of a screen.")
    split: Split
    models: list[str] = Field(
        min_length=1, json_schema_extra=UNIQUE, description="Names of models."
    )
    seeds: Seeds = Field(
        [0], description="Seeds of training and of the ceiling; a baseline uses the first alone."
    )
    gene_sets: Annotated[list[str], Field(json_schema_extra=UNIQUE)] | None = Field(
        None,
        description="Names of gene sets; null for all of the configuration, or for a simulated "
        "screen its own.",
    )
    perturbation_groups: Words | None = Field(
        None,
        description="GMT file of known groups of perturbations, such as pathways or complexes, by "
        "the names of perturbations or of the genes that they target; null for none.",
    )


class Configuration(Section):
    """Screens, models trained on their splits, and how these are evaluated.

    Threads, memory and run times belong to the rules and profiles, not here.
    """

    name: Name | None = Field(
        None,
        description="Name of the configuration, which its report carries, as in "
        "results/report-norman.html, so that reports of several configurations lie side by side. "
        "By default the name of its file; none for the default configuration, whose report is "
        "results/report.html.",
    )
    screens: dict[Name, Source] = Field(min_length=1, description="Where cells come from, by name.")
    downloads: dict[Name, Download] = Field(
        {},
        description='Published files, by name. A screen of the source "norman" or "replogle" is '
        "made of the one that is called after its source and its copy, for instance "
        "norman_scperturb. They are kept in data/downloads, which may be a link to a larger disk.",
    )
    gene_sets: dict[Name, GeneSetFile] = Field(
        {},
        description="Gene-set files in GMT format (one set a line: name, description, gene "
        'symbols), by name. A simulated screen brings its own, called "programmes".',
    )
    models: dict[Name, ModelKind] = Field(
        min_length=1, description="Models and baselines with their hyperparameters, by name."
    )
    training: Training = Field({}, validate_default=True)
    evaluation: Evaluation = Field({}, validate_default=True)
    enrichment: Enrichment = Field({}, validate_default=True)
    experiments: dict[Name, Experiment] = Field(
        min_length=1,
        description="Experiments by name: a screen, its splits and the models to compare.",
    )


_SOURCE = (
    '"norman" and "replogle" are the paper\'s screens, downloaded; "h5ad" is any AnnData file of '
    'raw counts. The others are made here, with known truth: "simulated" is like a real screen, '
    '"simulated_additive" has Gaussian measurements of SAMS-VAE\'s own model, and '
    '"simulated_svae_plus" Poisson counts of SVAE+\'s.'
)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


@functools.cache
def json_schema() -> Schema:
    """Write the JSON schema of the configuration.

    Returns
    -------
    dict
        Draft 2020-12. Its definitions are the sections, each source of a screen and each kind of
        model; an entry of `screens` is chosen by its `source`, one of `models` by its `kind`.
    """
    sections = (Download, Training, Evaluation, Enrichment, Experiment)
    names = {section.__name__: section.__name__.lower() for section in sections}
    kind = f"{_quoted(BASELINES)}: baselines, computed from the training cells; "
    kind += (
        f"{_quoted(CEILINGS)}: the ceiling, computed from held-out cells; "
        f"{_quoted(EXTERNAL)}: predictions of another tool. The others are trained."
    )
    whole = definition(Configuration, {**names, "Source": "screen", "ModelKind": "model"})
    return {
        "$schema": DIALECT,
        "title": "Configuration of the SAMS-VAE workflow",
        **whole,
        "$defs": {
            "screen": choice(
                Source, "source", _SOURCE, {name: f"{name}_screen" for name in SOURCES}
            ),
            **{
                f"{name}_screen": definition(source, source=name)
                for name, source in SOURCES.items()
            },
            "model": choice(ModelKind, "kind", kind, {name: name for name in KINDS}),
            **{name: definition(model, kind=name) for name, model in KINDS.items()},
            **{names[section.__name__]: definition(section) for section in sections},
        },
    }


def schema_file() -> str:
    """Write the schema as YAML, as it stands in ``workflow/schemas/config.schema.yaml``."""
    head = "# Written by `make schema` from workflow/scripts/samsvae/config; edit it there.\n"
    return head + yaml.safe_dump(json_schema(), sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    print(schema_file(), end="")
