"""Sections of the report: a new figure or table is one entry of :data:`SECTIONS`.

The list determines the files that the workflow makes, and the content and order of the report. A
figure is drawn by the function ``draw_<name>`` of its module in :mod:`samsvae.figures`; its caption
is ``workflow/report/<name>.rst``. A table is shown as it is, and can be searched.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

SPLIT_FOLDER = "results/{experiment}/{split}"  # of the first split, which figures show
TABLES_FOLDER = "results/{experiment}/tables"

# properties of an experiment that a figure or table needs
COUNTS = "counts"  # UMI counts, and so effects on expression
BATCHES = "batches"  # of cells, named by the source
CONTEXTS = "contexts"  # of cells, such as cell lines, named by the source
GUIDES = "guides"  # of cells, beside the genes that they target
TRAINING = "training"  # at least one trained model
GENE_SETS = "gene_sets"
FRACTIONS = "fractions"  # several fractions available for training
GRIDS = "grids"  # of hyperparameters to choose from
PAPER = "paper"  # results reported by the paper
TRUTH = "truth"  # a simulated screen
MASKS = "masks"  # a model with masks of latent dimensions
GROUPS = "groups"  # known groups of perturbations
STATE_MAP = "state_map"  # unless switched off
CELLS = "cells"  # scores of predicted cells, unless switched off or effects are marginal
INTERVALS = "intervals"  # posterior intervals of predicted effects, unless switched off
MARGINAL = "marginal"  # effects of single perturbations in cells with several

# cells that perturbations are compared with and the test of genes, whether or not effects are
# marginal; a Section and a Table name them as {reference} and {test}
REFERENCES = {False: "control cells", True: "other cells"}
TESTS = {False: "rank-sum test", True: "score test of least squares"}


def figure_options(
    config: Mapping[str, Any], experiment: str, properties: Collection[str]
) -> dict[str, Any]:
    """Return the options of an experiment's figures and of their captions."""
    evaluation = config["evaluation"]
    return {
        "reference": REFERENCES[MARGINAL in properties],
        "test": TESTS[MARGINAL in properties],
        "models": config["experiments"][experiment]["models"],
        "evaluation": {key: evaluation[key] for key in ("top_genes", "fdr")},
    }


@dataclass(frozen=True)
class Figure:
    """A figure, drawn from one table.

    Attributes
    ----------
    name
        Name of its file and its caption.
    module
        Module of :mod:`samsvae.figures` with the function ``draw_<name>``.
    table
        File name among the experiment's tables; with a folder in front of it, a path.
    needs
        Properties that an experiment must have.
    """

    name: str
    module: str
    table: str
    needs: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of the table, with the wildcards experiment and split."""
        return self.table if "/" in self.table else f"{TABLES_FOLDER}/{self.table}"

    @property
    def function(self) -> str:
        """Name the function that draws it, as ``module:function``."""
        return f"samsvae.figures.{self.module}:draw_{self.name}"


@dataclass(frozen=True)
class Table:
    """A table for the reader of the report.

    Attributes
    ----------
    name
        File name among the experiment's tables.
    caption
        Description of rows and columns.
    needs
        What an experiment must have.
    first
        Column by which the rows are sorted, smallest first, before a long table is truncated in
        the report; with a minus in front, largest first. Empty for the file's order.
    file_only
        Columns that the page leaves to the file: names or patterns of :mod:`fnmatch`.
    """

    name: str
    caption: str
    needs: tuple[str, ...] = ()
    first: str = ""
    file_only: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of the table, with the wildcard experiment."""
        return f"{TABLES_FOLDER}/{self.name}"


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Attributes
    ----------
    name
        Anchor of links.
    title
        Heading.
    lead
        Introduction.
    entries
        Its figures and tables, in order.
    """

    name: str
    title: str
    lead: str
    entries: tuple[Figure | Table, ...]


SECTIONS = (
    Section(
        "screen",
        "Screen: cells and their split",
        "In a pooled CRISPR screen each cell carries one or several perturbations, or a "
        "non-targeting guide: these are the control cells. The models are trained on part of the "
        "cells and evaluated on held-out cells.",
        (
            Figure("screen", "screen", "screen.tsv", (COUNTS,)),
            Figure("split", "screen", "split.tsv"),
            Table(
                "cells.tsv",
                "Cells of each part of each split, and cells left out by reason, with fractions of "
                "all cells of the source.",
            ),
            Table(
                "warnings.tsv",
                "Warnings of the check of the screen: finding, consequence and remedy.",
                (COUNTS,),
            ),
        ),
    ),
    Section(
        "quality",
        "Quality: is the screen sound?",
        "Before any model: are the tests calibrated, do perturbations change their targets and "
        "anything else, do guides and batches agree? All cells are used here, and compared within "
        "batches where the screen names these.",
        (
            Figure("null", "screen", "null_quantiles.tsv", (COUNTS,)),
            Figure("hits", "screen", "hits.tsv", (COUNTS,)),
            Figure("knock_down", "screen", "knock_down.tsv", (COUNTS,)),
            Figure("guides", "screen", "guides.tsv", (COUNTS, GUIDES)),
            Figure("batches", "screen", "batches.tsv", (COUNTS, BATCHES)),
            Figure("contexts", "screen", "contexts.tsv", (COUNTS, CONTEXTS)),
            Table(
                "hits.tsv",
                "Every perturbation, those with the smallest p-value and most differentially "
                "expressed genes first: its E-distance with the p-value of a "
                "permutation test, differentially expressed genes among the tested ones, the "
                "smallest effect that would have been found with 80 % power in a gene of median "
                "noise, the correlation of effects of two halves of its cells, its median library "
                "size relative to {reference}, the median log2 ratio of genes (common shift) "
                "and the gene whose fraction of the counts explains it, if one does; the gene of "
                "smallest p-value (first gene).",
                (COUNTS,),
            ),
            Table(
                "knock_down.tsv",
                "Change of each measured target gene: mean CP10k of the perturbation's cells (of "
                "all guides, and of each) and of {reference}, log2 of their ratio (effects, in "
                "contrast, are differences of mean log2(CP10k + 1)) with a 95 % confidence "
                "interval, p-value, and rank among all genes.",
                (COUNTS,),
                first="pvalue",
            ),
            Table(
                "null_calibration.tsv",
                "Groups of cells without an effect, tested like perturbations: fractions of small "
                "p-values, genomic inflation (lambda), and genes called significant.",
                (COUNTS,),
            ),
            Table(
                "guides.tsv",
                "Every guide compared with the other guides of its perturbation.",
                (COUNTS, GUIDES),
                first="concordance",
            ),
            Table(
                "batches.tsv",
                "Cells of each perturbation and {reference} by batch.",
                (COUNTS, BATCHES),
            ),
            Table(
                "contexts.tsv",
                "Every perturbation in each context: differentially expressed genes, correlation "
                "of its effect with that in the other contexts, and number of genes whose effects "
                "differ between contexts (Cochran's Q test).",
                (COUNTS, CONTEXTS),
                first="-n_heterogeneous",
            ),
        ),
    ),
    Section(
        "expression",
        "Expression: differentially expressed genes",
        "A gene is differentially expressed (DE) if cells of a perturbation differ significantly "
        "from {reference} ({test}, false discovery rate over genes): all cells in the "
        "volcano plots and the list of perturbations, held-out cells where models are evaluated. "
        "Models are not trained on this test; their predicted effects rank the genes.",
        (
            Figure("volcanoes", "effects", "effects.parquet", (COUNTS,)),
            Figure("differential_expression", "effects", "de_comparison.tsv", (COUNTS,)),
            Figure("de_by_strength", "effects", "de_by_strength.tsv", (COUNTS,)),
            Table(
                "perturbations.tsv",
                "Every perturbation: its cells, its strongest up- and down-regulated genes (effect "
                "of all cells), and the file of its figure, which snakemake draws on request.",
                (COUNTS,),
            ),
            Table(
                "de_comparison.tsv",
                "Every perturbation: cells tested, number of DE genes, and scores of each model on "
                "these genes.",
                (COUNTS,),
                first="-n_de",
                file_only=("*_with_targets", "auroc_*"),
            ),
            Table(
                "missed_effects.tsv",
                "What predictions leave out: the fraction of the observed effect of held-out cells "
                "that is explained (noise taken off; empty where there is no effect beyond noise), "
                "and the genes of largest error, observed (predicted).",
                (COUNTS,),
                first="-effect_size",
            ),
            Table(
                "context_scores.tsv",
                "Predicted effects in each context, compared with those of held-out cells: whether "
                "the perturbation was trained there, the fraction of the effect that is explained, "
                "correlation and root mean square error over genes.",
                (COUNTS, CONTEXTS),
                first="-effect_size",
            ),
            Table(
                "de_by_strength.tsv",
                "These scores stratified by effect strength: median and quartiles by "
                "the number of DE "
                "genes and of held-out cells.",
                (COUNTS,),
                file_only=("lower", "mean_*"),
            ),
        ),
    ),
    Section(
        "pathways",
        "Pathways",
        "Gene sets are tested among the genes of largest effect (over-representation) and along "
        "all genes ranked by signed effect (preranked enrichment), for observed and for predicted "
        "effects.",
        (
            Figure("enrichment", "pathways", "enrichment.tsv", (COUNTS, GENE_SETS)),
            Figure("pathway_map", "pathways", "enrichment.tsv", (COUNTS, GENE_SETS)),
            Figure("pathway_agreement", "pathways", "pathway_agreement.tsv", (COUNTS, GENE_SETS)),
            Table(
                "pathway_agreement.tsv",
                "Agreement of the gene sets of predicted effects with those of observed effects.",
                (COUNTS, GENE_SETS),
                first="-n_observed",
                file_only=("median_*", "n_same_top", "n_with_top", "fraction_same_top"),
            ),
            Table(
                "enrichment.tsv",
                "Gene sets by perturbation, from observed effects and from each model's.",
                (COUNTS, GENE_SETS),
                first="pvalue",
                file_only=("*_order",),
            ),
        ),
    ),
    Section(
        "mechanisms",
        "Mechanisms: latent factors shared by perturbations",
        "Each model represents a perturbation by a shift in latent space. In SAMS-VAE a sparse "
        "mask selects the latent dimensions (factors) of each perturbation; perturbations with a "
        "factor in common may act through the same mechanism. The effect of a factor on expression "
        "is that of a latent traversal, an intervention on this factor alone.",
        (
            Figure("latent_effects", "latents", "latent_effects.tsv", (TRAINING,)),
            Figure("factors", "latents", "latent_effects.tsv", (TRAINING, MASKS)),
            Figure("factor_groups", "pathways", "factor_groups.tsv", (TRAINING, MASKS, GROUPS)),
            Figure(
                "factor_enrichment",
                "pathways",
                "factor_enrichment.tsv",
                (TRAINING, MASKS, COUNTS, GENE_SETS),
            ),
            Figure("similarity", "latents", "similarity.parquet", (COUNTS,)),
            Figure("perturbation_map", "latents", "perturbation_map.tsv", (COUNTS, STATE_MAP)),
            Table(
                "factors.tsv",
                "Every active factor: number of perturbations that use it, their mean "
                "absolute shift "
                "(basal standard deviations), the fraction with a positive shift, and their names.",
                (TRAINING, MASKS),
            ),
            Table(
                "factor_groups.tsv",
                "Enrichment of known groups of perturbations in factors: hypergeometric test, "
                "with false discovery rates by Benjamini and Hochberg and by permuted masks.",
                (TRAINING, MASKS, GROUPS),
                first="pvalue",
            ),
            Table(
                "group_sharing.tsv",
                "Number of factors shared by two members of a known group, compared with random "
                "groups of that size.",
                (TRAINING, MASKS, GROUPS),
                first="pvalue",
            ),
            Table(
                "factor_enrichment.tsv",
                "Gene sets enriched among the genes with the largest effects of each factor.",
                (TRAINING, MASKS, COUNTS, GENE_SETS),
                first="pvalue",
            ),
        ),
    ),
    Section(
        "responders",
        "Responders",
        "A cell that carries a guide may escape the perturbation. The first model scores every "
        "cell: the logarithm of the likelihood of its counts with the perturbation, relative to "
        "that without. Cells without the perturbation, scored as if they had it, show how cells "
        "score that do not respond.",
        (
            Figure("responders", "states", "responder_scores.tsv", (COUNTS, TRAINING)),
            Table(
                "responders.tsv",
                "Every perturbation, and each of its guides: fraction of responders with a 95 % "
                "interval (empty where responders cannot be distinguished from {reference}), "
                "median score of its cells and of {reference} (nats), the fraction of "
                "responders that would score below the median of the latter (overlap), and the "
                "root mean square effect among all cells and among responders.",
                (COUNTS, TRAINING),
                first="overlap",
            ),
        ),
    ),
    Section(
        "combinations",
        "Combinations: additivity and genetic interactions",
        "Where a pair of genes and both single genes were perturbed, the effect of the pair is "
        "compared with the sum of the single effects. Non-additivity that exceeds "
        "sampling noise is a genetic interaction. SAMS-VAE adds effects in latent space; its "
        "decoder is nonlinear, so that predicted expression may be non-additive.",
        (
            Figure("combinations", "effects", "combinations.tsv", (COUNTS,)),
            Table(
                "combinations.tsv",
                "Every combination and model: root mean square effects in log2(CP10k + 1), genes "
                "with significant non-additivity, and the non-additivity that the model predicts.",
                (COUNTS,),
                first="-non_additivity",
            ),
        ),
    ),
    Section(
        "effects",
        "Effects: accuracy of predictions",
        "The effect of a perturbation on a gene is the mean log2(CP10k + 1) of its cells minus "
        "that of {reference}{marginal}. Observed effects are compared with the predictions of each "
        "model, and models with one another by paired tests over replicates.",
        (
            Figure("metrics", "scores", "summary.tsv"),
            Figure("ranking", "scores", "ranking.tsv", (COUNTS,)),
            Figure("paired_differences", "scores", "paired_differences.tsv"),
            Figure("fractions", "scores", "intervals.tsv", (TRAINING, FRACTIONS)),
            Figure("effects", "effects", "effects.parquet", (COUNTS,)),
            Figure("perturbations", "scores", f"{SPLIT_FOLDER}/metrics.parquet", (COUNTS,)),
            Figure("reliability", "scores", "coverage.tsv", (INTERVALS,)),
            Figure("vcc2026", "scores", "vcc2026.tsv", (CELLS,)),
            Table(
                "summary.tsv",
                "The main scores with confidence intervals, and their comparison with the best "
                "model.",
            ),
            Table(
                "ranking.tsv",
                "Mean normalised score of each model over n_metrics calibrated metrics (named in "
                "metrics): 0 is the reference, 1 the noise ceiling or a replicate; with the 95 % "
                "interval of a bootstrap, the fraction of bootstrap samples in which the model is "
                "the best, and the difference to the best model.",
                (COUNTS,),
            ),
            Table(
                "paired_differences.tsv",
                "Paired comparisons of all models on all main scores.",
                file_only=("drf", "bds"),  # in calibration.tsv
            ),
            Table(
                "calibration.tsv",
                "Whether a metric can rank models on this screen: the fraction of its range, from "
                "a prediction that knows nothing of the perturbation (negative_control) to the "
                "best value, that a replicate of the perturbation's own cells covers (drf, median "
                "over n perturbations), and the fraction of perturbations for which the replicate "
                "is better (bds).",
                (COUNTS,),
                first="bds",
            ),
            Table(
                "coverage.tsv",
                "Fraction of the effects observed in test cells that lies inside posterior "
                "intervals, inside calibrated ones, and inside intervals of sampling noise alone, "
                "by nominal level; of all tested genes, and of those that other cells show to "
                "change significantly.",
                (INTERVALS,),
                file_only=("mean_*",),
            ),
            Table(
                "vcc2026.tsv",
                "Predicted cells of every run scored by the rules vcc2026: value, that of the mean "
                "response (baseline) and of half of the held-out cells against the other half "
                "(replicate), and the value on the scale from 0 (baseline) to 1 (replicate); empty "
                "where the replicate is not better than the baseline.",
                (CELLS,),
                file_only=("mean_scaled",),
            ),
            Table(
                "population.tsv",
                "Distances of the distribution of sampled cells from that of held-out cells, mean "
                "over perturbations, with those of control cells and of a replicate (half of the "
                "held-out cells against the other half).",
                (CELLS, TRAINING),
                file_only=("mean_*",),
            ),
            Table(
                "reproduction_overview.tsv",
                "The paper's results and ours, mean ± half the 95 % interval over splits; bounds "
                "in nats per cell, relative ones to SAMS-VAE at fraction 0. There is a "
                "verdict only at "
                "the paper's scale and settings; the last columns list what is smaller "
                "or different.",
                (PAPER,),
            ),
            Table(
                "reproduction.tsv",
                "The same by single result, with both intervals of the paper's: the confidence "
                "interval of its mean, and the prediction interval of ours.",
                (PAPER,),
            ),
        ),
    ),
    Section(
        "models",
        "Models: training and predictive bounds",
        "Each model assigns a probability to the counts of a cell. The importance-weighted bound "
        "(IWELBO) is a lower bound on its logarithm; a higher bound on held-out cells indicates a "
        "better model of the screen.",
        (
            Figure("training", "scores", "training.tsv", (TRAINING,)),
            Figure("iwelbo", "scores", "iwelbo.tsv", (TRAINING,)),
            Figure("iwelbo_particles", "scores", "iwelbo_by_particles.tsv", (TRAINING,)),
            Table(
                "iwelbo.tsv",
                "Mean bound of every run in nats per cell, and its difference to the "
                "first model with "
                "95 % confidence intervals.",
                (TRAINING,),
                file_only=("mean_iwelbo",),
            ),
            Table(
                "candidates.tsv",
                "Hyperparameters tried and chosen: bound of the validation cells (IWELBO, nats per "
                "cell), its difference to that of the chosen candidate, and how often "
                "a candidate was "
                "chosen. Each split chooses by its own validation cells, never by test cells.",
                (GRIDS,),
            ),
        ),
    ),
    Section(
        "basal",
        "Basal state: independence of the perturbation",
        "The latent state of a cell is the sum of a basal state and the effect of its "
        "perturbation. If the two are separated, a classifier cannot predict the perturbation from "
        "the basal state better than by chance.",
        (
            Figure("basal", "states", "basal.tsv", (TRAINING,)),
            Figure("state_map", "states", "state_map.tsv", (TRAINING, STATE_MAP)),
            Table(
                "basal.tsv",
                'Accuracy of the classifier by state, perturbation (against control; "all" is all '
                "at once) and true or shuffled labels.",
                (TRAINING,),
                file_only=("mean_accuracy",),
            ),
        ),
    ),
    Section(
        "truth",
        "Truth: recovery of what was simulated",
        "In a simulated screen the factors of each perturbation and the latent state of each cell "
        "are known.",
        (
            Figure("truth", "scores", "matched_masks.tsv", (TRAINING, TRUTH)),
            Figure("recovery", "scores", "recovery.tsv", (TRAINING, TRUTH)),
        ),
    ),
)

SHOWN_FIGURES = {
    entry.name: entry
    for section in SECTIONS
    for entry in section.entries
    if isinstance(entry, Figure)
}


def sections_of(properties: Collection[str]) -> list[Section]:
    """Keep the entries that an experiment with these properties can show; no empty section."""
    kept = [
        Section(
            section.name,
            section.title,
            section.lead,
            tuple(entry for entry in section.entries if set(entry.needs) <= set(properties)),
        )
        for section in SECTIONS
    ]
    return [section for section in kept if section.entries]


def figures_of(properties: Collection[str]) -> list[Figure]:
    """List the figures of an experiment with these properties."""
    return [e for s in sections_of(properties) for e in s.entries if isinstance(e, Figure)]


def tables_of(properties: Collection[str]) -> list[str]:
    """List the paths of the tables that an experiment shows or draws, each once."""
    entries = (entry for section in sections_of(properties) for entry in section.entries)
    return list(dict.fromkeys(entry.path for entry in entries))
