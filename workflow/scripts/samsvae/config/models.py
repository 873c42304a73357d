"""Kinds of models and baselines: hyperparameters, bounds and facts, each said once.

The JSON schema, the reference of the configuration, the list of kinds, the report's line on a
model and the class that implements it follow from the entries here. Imports neither torch nor
scanpy, since the Snakefile imports it.
"""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from samsvae.config.schema import OF_RUN, Count, FilePath, Positive, Probability, Section, Words

Embedding = Annotated[
    Literal["mean_field", "correlated"],
    Field(description="Guide of the embeddings, independent of the mask or given the mask."),
]
EmbeddingPriorScale = Annotated[
    Positive, Field(description="Prior standard deviation s of a perturbation's embedding.")
]
BasalEncoder = Annotated[
    Literal["mean_field", "correlated"],
    Field(
        description='"mean_field" encodes the basal state from the cell\'s counts alone, '
        '"correlated" also from the sampled effect of the cell\'s perturbation.'
    ),
]

EXPRESSION = "expression"  # principal components of training expression, in place of a table
Features = Annotated[FilePath, Field(max_length=4096)]
FeatureComponents = Annotated[
    Count,
    Field(description="Principal components of perturbation_features that are used, at most."),
]


class ModelKind(Section):
    """One model or baseline.

    The docstring of each kind is its description in the reference of the configuration.

    Attributes
    ----------
    name
        What the configuration calls it.
    summary
        One line for the report.
    implementation
        Module and class of a trained model; None for what is computed from measured cells.
    with_features
        Module and class of the same with features of perturbations; None if it cannot have any.
    has_masks
        Whether it infers which perturbation shifts which latent dimension.
    is_ceiling
        Whether it is a measurement of held-out cells themselves, no competing model.
    is_external
        Whether its predictions are read from files of another tool.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    implementation: ClassVar[tuple[str, str] | None] = None
    with_features: ClassVar[tuple[str, str] | None] = None
    has_masks: ClassVar[bool] = False
    is_ceiling: ClassVar[bool] = False
    is_external: ClassVar[bool] = False


class TrainedModel(ModelKind):
    """Hyperparameters that every trained model has."""

    grid: Annotated[dict[str, list[Any]], Field(min_length=1)] | None = Field(
        None,
        description="Hyperparameters with lists of values to try, whose combinations are all "
        "candidates: models like any other, called for instance "
        "sams_vae--mask_prior-0.1--n_latent-100. On each split, the candidate whose validation "
        "cells have the highest bound (IWELBO), averaged over the seeds of training, stands under "
        "the name of this model. The likelihood is not chosen so, since bounds of different "
        "likelihoods are not comparable. null for a single model.",
    )
    combinations: Literal["additive", "unique"] = Field(
        "additive",
        description='"additive" encodes a combination as the sum of its genes, each scaled by its '
        'dose, "unique" as a perturbation of its own at its doses; a gene alone is scaled by its '
        "dose in both.",
    )
    covariates: list[str] | None = Field(
        None,
        description="Columns of obs that encoder and decoder take beside the counts and the latent "
        'state: "batch" and "context" as the screen names them, or any other column (text is '
        "categorical, numbers are standardised). Predicted effects are averaged over batches and "
        "contexts as observed ones are. null for batch and context where the screen has them; [] "
        "for none, as in the paper.",
    )
    on_target: bool = Field(
        False,
        description="Whether each perturbation has an effect of its own on the gene that it "
        "targets, where this gene is measured, beside the effects through latent factors: on its "
        "mean and on its dispersion. Names of perturbations are compared with names of genes. "
        "false for the paper's models.",
    )
    on_target_prior_scale: Positive = Field(
        2.0, description="Prior standard deviation of on-target effects, natural logarithm."
    )
    likelihood: Literal["negative_binomial", "poisson", "normal"] = Field(
        "negative_binomial", description="Distribution of counts."
    )
    dispersion: Literal["gene", "gene-batch"] = Field(
        "gene",
        description='Dispersion of the negative binomial: of each gene, or "gene-batch" for one '
        "of each gene that differs between the levels of covariates, such as batches (slower, "
        "since the fused kernels have one for each gene).",
    )
    n_latent: Count = Field(100, description="Latent dimensions K.")
    n_hidden: Count = Field(400, description="Width of the hidden layers.")
    n_layers: Count = Field(1, description="Hidden layers of encoder and decoder.")
    shuffle_labels: bool = Field(
        False,
        description="true for a negative control: the perturbations of the training cells are "
        "shuffled among them, and those of the validation cells. Add it as one more model beside "
        "the same without, to see what is reached without any link between cells and "
        "perturbations.",
    )


class MaskedAdditiveModel(TrainedModel):
    """Hyperparameters of the SAMS-VAEs, whatever the prior of their masks."""

    has_masks = True

    embedding: Embedding = "correlated"
    embedding_n_hidden: Count = Field(200, description="Width of the correlated embedding network.")
    embedding_n_layers: Count = Field(
        2, description="Hidden layers of the correlated embedding network."
    )
    embedding_prior_scale: EmbeddingPriorScale = 1.0
    basal_encoder: BasalEncoder = "correlated"


class SamsVae(MaskedAdditiveModel):
    """SAMS-VAE (Bereket & Karaletsos 2023), masked additive effects."""

    name = "sams_vae"
    summary = (
        "a cell's latent state is a basal state plus the sum of the effects of its perturbations, "
        "each of which moves few latent dimensions"
    )
    implementation = ("samsvae.models.sams_vae", "SamsVae")
    with_features = ("samsvae.models.sams_vae", "FeatureSamsVae")

    mask_prior: Probability = Field(
        0.01, description="Prior probability p that a perturbation moves a latent dimension."
    )
    context_effects: bool = Field(
        False,
        description="Whether a perturbation has, beside its effect that all contexts share, a "
        "sparse effect of its own in each context (cell line, donor, time point). false for one "
        "effect in all contexts, as in the paper.",
    )
    context_mask_prior: Probability = Field(
        0.001,
        description="Prior probability that an effect in one context moves a latent dimension.",
    )
    perturbation_features: Features | None = Field(
        None,
        description="What is known of perturbations beforehand, by which the prior of their "
        "effects differs, and by which effects of perturbations without training cells are "
        "predicted: a table (first column perturbation, one feature in each other), or "
        '"expression" for the principal components of the training expression of target genes, '
        "which must be measured. null for none, as in the paper.",
    )
    feature_components: FeatureComponents = 20


class BetaBernoulliSamsVae(MaskedAdditiveModel):
    """SAMS-VAE whose mask probabilities have a Beta prior."""

    name = "sams_vae_beta_bernoulli"
    summary = "SAMS-VAE that also learns how many latent dimensions move"
    implementation = ("samsvae.models.sams_vae", "BetaBernoulliSamsVae")

    alpha: Positive = Field(
        1.0, description="First shape of the Beta prior of the mask probability."
    )
    beta: Positive = Field(10.0, description="Second shape of that prior, the larger the sparser.")
    rate_guide: Literal["point", "beta"] = Field(
        "point", description="Guide of the mask probability, a point or a Beta."
    )


class SvaePlus(TrainedModel):
    """SVAE+ (Lopez et al. 2023), in which a combination is a perturbation of its own."""

    name = "svae_plus"
    summary = "a sparse effect of its own for each perturbation; a combination is one, too"
    implementation = ("samsvae.models.svae_plus", "SvaePlus")
    has_masks = True

    beta: Positive = Field(
        2.0, description="Shape b of the Beta(1, b) prior of the mask probability."
    )
    combinations: Literal["unique"] = Field(
        "unique", description='SVAE+ has no sum of perturbations, so "unique" is all there is.'
    )


class ConditionalVae(TrainedModel):
    """Conditional VAE, the perturbation as one more input of encoder and decoder."""

    name = "conditional_vae"
    summary = "a network that is told the perturbation, with no structure in its effect"
    implementation = ("samsvae.models.conditional_vae", "ConditionalVae")


class CpaVae(TrainedModel):
    """CPA-VAE, additive effects without a mask."""

    name = "cpa_vae"
    summary = "the same sum of effects, but each may move every latent dimension"
    implementation = ("samsvae.models.cpa_vae", "CpaVae")

    embedding_prior_scale: EmbeddingPriorScale = 1.0
    basal_encoder: BasalEncoder = "correlated"


class NoChange(ModelKind):
    """Baseline, every perturbation leaves the cell as the control cells are."""

    name = "no_change"
    summary = "baseline: perturbed cells are as control cells"


class Additive(ModelKind):
    """Baseline, a gene's observed effect among training cells.

    For a combination, the sum of its genes' effects. At a dose without training cells, that of
    the nearest dose in proportion.
    """

    name = "additive"
    summary = (
        "baseline: the mean effect of a perturbation's training cells; for a combination, the sum "
        "of those of its parts"
    )


class OtherContexts(ModelKind):
    """Baseline, the mean effect of the perturbation in the other contexts it was trained in.

    In each context, the mean of the effects of the perturbation among training cells of every
    other context, each within its context and batches. Needs a screen with contexts.
    """

    name = "other_contexts"
    summary = "baseline: the observed effect of the same perturbation in the other contexts"


class MeanEffect(ModelKind):
    """Baseline, the mean effect of all perturbations with training cells."""

    name = "mean_effect"
    summary = "baseline: every perturbation has the mean effect of all"


class TrainingMean(ModelKind):
    """Baseline, the observed effect of the perturbation itself among training cells.

    For a combination, that of the combination's own training cells. A perturbation without
    training cells has the mean effect of all that have some.
    """

    name = "training_mean"
    summary = "baseline: the observed effect of the perturbation's own training cells"


class Bilinear(ModelKind):
    """Baseline, effects linear in the principal components of the targeted genes.

    They are summed for a combination (Ahlmann-Eltze et al. 2025). Targets must be among the
    measured genes; one that is not adds nothing. With a table of features, these represent
    perturbations in place of the components of their genes.
    """

    name = "bilinear"
    summary = "baseline: a linear model of perturbations by the genes that they target"

    n_components: Count = Field(
        10, description="Principal components of the mean training profiles."
    )
    ridge: Positive = Field(0.1, description="Ridge penalty.")
    perturbation_features: Features | None = Field(
        None,
        description="Table of features of perturbations (first column perturbation, one feature in "
        "each other); null for the components of the genes that they target.",
    )


class NearestFeature(ModelKind):
    """Baseline, the training effect of the perturbation with the most similar features.

    The smallest Euclidean distance between features that are standardised over perturbations with
    training cells of their own; the mean over perturbations at the same distance. Effects are
    summed for a combination. A perturbation with training cells is most similar to itself; one
    without features has the mean effect of all.
    """

    name = "nearest_feature"
    summary = "baseline: the observed effect of the perturbation with the most similar features"

    perturbation_features: Features = Field(
        EXPRESSION,
        description="Table of features of perturbations (first column perturbation, one feature in "
        'each other), or "expression" for the principal components of the training expression of '
        "the genes that they target.",
    )
    n_components: Count = Field(
        10, description='Principal components of training expression, for "expression" alone.'
    )


class SplitHalf(ModelKind):
    """Ceiling, the effect among half of the held-out cells.

    It is compared with the effect among the other cells, and its choice of cells follows the
    experiment's seeds.
    """

    name = "split_half"
    summary = (
        "ceiling: half of the held-out cells predicts the other half, as measuring once more would"
    )
    is_ceiling = True


class External(ModelKind):
    """Predictions of another tool, read from files of AnnData.

    Of effects (perturbations x genes, log2(CP10k + 1), relative to control cells) or of cells (raw
    counts). Genes and perturbations are found by name, in any order; those that the screen does not
    have are ignored.
    """

    name = "external"
    summary = "predictions of another tool, read from a file"
    is_external = True

    path: str = Field(
        pattern=OF_RUN,
        max_length=4096,
        description="The file (h5ad), or a pattern with {experiment}, {split} and {seed} in braces "
        "and no others, such as predictions/{split}/seed{seed}.h5ad. With {seed}, there is one for "
        "each of the experiment's seeds; without, one run, as of a baseline.",
    )
    content: Literal["effects", "cells"] = Field(
        "effects",
        description='What the file holds: "effects" in X, a row for each perturbation, or "cells" '
        "with raw counts, whose effects are computed as those of measured cells.",
    )
    perturbation_column: Words | None = Field(
        None,
        description="Column of obs with the perturbation of each row; null for the names of the "
        'rows of effects, and for the column "perturbation" of cells.',
    )
    control: Words = Field(
        "control",
        description="Label of control cells, alone or within a label, as in KLF1+ctrl. Effects of "
        "cells are relative to the file's own control cells, or without any, to the measured ones "
        "of the training cells.",
    )
    delimiter: Words | None = Field(
        "+",
        description="What joins the perturbations of a combination, in any order; null if labels "
        "are never combinations.",
    )
    counts_layer: str | None = Field(
        None, description="Layer of the raw counts of cells; null for X."
    )
    missing: Literal["refuse", "no_change"] = Field(
        "refuse",
        description="What to do if perturbations or genes of the screen are not predicted: "
        '"refuse" the file, or "no_change", by which their effect is 0.',
    )


def _entries(base: type[ModelKind]) -> Iterator[type[ModelKind]]:
    """Go through the classes that have a name of their own, in order of definition."""
    for kind in base.__subclasses__():
        if "name" in vars(kind):
            yield kind
        yield from _entries(kind)


KINDS = {kind.name: kind for kind in _entries(ModelKind)}
TRAINED = tuple(name for name, kind in KINDS.items() if kind.implementation)
CEILINGS = tuple(name for name, kind in KINDS.items() if kind.is_ceiling)
EXTERNAL = tuple(name for name, kind in KINDS.items() if kind.is_external)
BASELINES = tuple(name for name in KINDS if name not in TRAINED + CEILINGS + EXTERNAL)
MASKED = tuple(name for name, kind in KINDS.items() if kind.has_masks)
