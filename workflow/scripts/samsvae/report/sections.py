"""Sections of the report: a new figure or table is one entry of :data:`SECTIONS`.

The list determines the files that the workflow makes, and the content and order of the report. A
figure is drawn by the function ``draw_<name>`` of its module in :mod:`samsvae.figures`; its caption
is ``workflow/report/<name>.rst``. A table is shown as it is, and can be searched.
"""

from collections.abc import Collection
from dataclasses import dataclass

SPLIT_FOLDER = "results/{experiment}/{split}"  # of the first split, the one shown in detail
TABLES_FOLDER = "results/{experiment}/tables"

# what an experiment must have for a figure or table to make sense
COUNTS = "counts"  # of transcripts, and so effects on expression
TRAINING = "training"  # a model that is trained
GENE_SETS = "gene_sets"
FRACTIONS = "fractions"  # several of them
GRIDS = "grids"  # of hyperparameters to choose from
PAPER = "paper"  # results that it reports
TRUTH = "truth"  # known, since the screen is simulated
MASKS = "masks"  # of a model, which say what uses which latent dimension
GROUPS = "groups"  # of perturbations that are known
STATE_MAP = "state_map"  # not switched off


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
        What a row and its columns say.
    needs
        What an experiment must have.
    first
        Column by which the rows are sorted, smallest first, before what is too long for the
        report is left out of it; with a minus in front, largest first. Empty for the file's order.
    """

    name: str
    caption: str
    needs: tuple[str, ...] = ()
    first: str = ""

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
        For links to it.
    title
        The question that it answers.
    lead
        What a reader must know beforehand.
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
        "Which cells were measured?",
        "In a pooled CRISPR screen every cell carries one perturbation, or a few, or none that "
        "does anything: those are the control cells. Part of the cells trains the models; others, "
        "which no model has seen, judge them.",
        (
            Figure("screen", "screen", "screen.tsv", (COUNTS,)),
            Figure("split", "screen", "split.tsv"),
            Table(
                "cells.tsv",
                "Cells of each part of each split, and cells that were left out, by reason; as "
                "fractions of all cells of the source.",
            ),
            Table(
                "warnings.tsv",
                "What the check of the screen found: what is strange, why it matters, and what to "
                "do about it.",
                (COUNTS,),
            ),
        ),
    ),
    Section(
        "models",
        "Did the models learn, and which one describes unseen cells best?",
        "Each model gives a probability to the counts of a cell. The better it has understood the "
        "screen, the higher the probability of cells that it has not seen; the bound below is on "
        "the logarithm of that probability.",
        (
            Figure("training", "bounds", "training.tsv", (TRAINING,)),
            Figure("iwelbo", "bounds", "iwelbo.tsv", (TRAINING,)),
            Figure("iwelbo_particles", "bounds", "iwelbo_by_particles.tsv", (TRAINING,)),
            Table(
                "iwelbo.tsv",
                "Mean bound of every run in nats per cell, and its difference to the first model.",
                (TRAINING,),
            ),
            Table(
                "candidates.tsv",
                "Hyperparameters tried and chosen: bound of the validation cells (IWELBO, nats per "
                "cell), how far it is behind the chosen candidate's, and how often a candidate was "
                "chosen. Each split chooses by its own validation cells, never by test cells.",
                (GRIDS,),
            ),
        ),
    ),
    Section(
        "effects",
        "Are the predicted effects right, and which model's are best?",
        "The effect of a perturbation on a gene is the mean log2(CP10k + 1) of its cells minus "
        "that of control cells. It is observed in the cells and predicted by each model. What a "
        "difference between two models is worth shows when they are compared repeat by repeat.",
        (
            Figure("metrics", "scores", "summary.tsv"),
            Figure("paired_differences", "scores", "paired_differences.tsv"),
            Figure("fractions", "scores", "intervals.tsv", (TRAINING, FRACTIONS)),
            Figure("effects", "effects", "effects.parquet", (COUNTS,)),
            Figure(
                "perturbations", "scores", f"{SPLIT_FOLDER}/perturbation_metrics.parquet", (COUNTS,)
            ),
            Table("summary.tsv", "The main scores with intervals, ranks of models and verdicts."),
            Table("paired_differences.tsv", "Every two models compared on every main score."),
            Table(
                "reproduction_overview.tsv",
                "The paper's results and ours, mean ± half the 95 % interval over splits; bounds "
                "in nats per cell, relative ones to SAMS-VAE at fraction 0. There is a verdict at "
                "the paper's scale and settings alone; the last columns say what is less or other.",
                (PAPER,),
            ),
            Table(
                "reproduction.tsv",
                "The same number by number, with both intervals of the paper's: that of its mean, "
                "and where ours is expected.",
                (PAPER,),
            ),
        ),
    ),
    Section(
        "expression",
        "Do the predictions find the genes that really change?",
        "A gene is differentially expressed where held-out cells of a perturbation differ from "
        "control cells by more than chance (Wilcoxon rank-sum test, false discovery rate over "
        "genes). A model does not see that test; it has to put these genes first by itself.",
        (
            Figure("volcanoes", "effects", "effects.parquet", (COUNTS,)),
            Figure("differential_expression", "effects", "de_comparison.tsv", (COUNTS,)),
            Figure("de_by_strength", "effects", "de_by_strength.tsv", (COUNTS,)),
            Table(
                "perturbations.tsv",
                "Every perturbation: its cells, the genes that it raises and lowers (effect among "
                "held-out cells), and the file in which Snakemake draws its figure on request.",
                (COUNTS,),
            ),
            Table(
                "de_comparison.tsv",
                "Every perturbation: cells tested, differentially expressed genes, and how well "
                "each model finds them.",
                (COUNTS,),
                first="-n_de",
            ),
            Table(
                "de_by_strength.tsv",
                "These scores for weak and strong perturbations: median and quartiles by the "
                "number of differentially expressed genes and of held-out cells.",
                (COUNTS,),
            ),
        ),
    ),
    Section(
        "combinations",
        "Is a combination more than the sum of its parts?",
        "Where a pair of genes and either gene alone were perturbed, the effect of the pair can be "
        "held against the sum of the two. What is left beyond it, and beyond the noise of few "
        "cells, is an interaction. SAMS-VAE adds up effects in its latent space; its decoder may "
        "make of them an expression that is no sum.",
        (
            Figure("combinations", "effects", "combinations.tsv", (COUNTS,)),
            Table(
                "combinations.tsv",
                "Every combination and model: sizes in log2(CP10k + 1), genes that depart from "
                "the sum of the parts, and whether the model foresees it.",
                (COUNTS,),
                first="-departure_size",
            ),
        ),
    ),
    Section(
        "pathways",
        "Which pathways move?",
        "Genes seldom act alone. Gene sets are tested among the genes of largest effect "
        "(over-representation) and along all genes ranked by their signed effect (preranked "
        "enrichment), for what was observed and for what is predicted.",
        (
            Figure("enrichment", "pathways", "enrichment.tsv", (COUNTS, GENE_SETS)),
            Figure("pathway_map", "pathways", "enrichment.tsv", (COUNTS, GENE_SETS)),
            Figure("pathway_agreement", "pathways", "pathway_agreement.tsv", (COUNTS, GENE_SETS)),
            Table(
                "pathway_agreement.tsv",
                "How well the gene sets of predicted effects agree with those of observed ones.",
                (COUNTS, GENE_SETS),
                first="-n_observed",
            ),
            Table(
                "enrichment.tsv",
                "Gene sets by perturbation, from observed effects and from each model's.",
                (COUNTS, GENE_SETS),
                first="pvalue",
            ),
        ),
    ),
    Section(
        "mechanisms",
        "Which mechanisms do perturbations share?",
        "The models place each perturbation in a space of few latent dimensions. SAMS-VAE's "
        "perturbations use only some of these: those that several share are mechanisms in common. "
        "What such a factor does shows when it alone is pushed, through the decoder.",
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
            Table(
                "factors.tsv",
                "Every factor in use: how many perturbations use it, how far they are moved along "
                "it (basal standard deviations), the share that it moves up, and their names.",
                (TRAINING, MASKS),
            ),
            Table(
                "factor_groups.tsv",
                "Which known groups of perturbations gather in which factor: hypergeometric test, "
                "with false discovery rates by Benjamini and Hochberg and by permuted masks.",
                (TRAINING, MASKS, GROUPS),
                first="pvalue",
            ),
            Table(
                "group_sharing.tsv",
                "Whether two members of a known group share more factors than two members of other "
                "groups of that size.",
                (TRAINING, MASKS, GROUPS),
                first="pvalue",
            ),
            Table(
                "factor_enrichment.tsv",
                "Gene sets among the genes that each factor moves most.",
                (TRAINING, MASKS, COUNTS, GENE_SETS),
                first="pvalue",
            ),
        ),
    ),
    Section(
        "basal",
        "Is the basal state free of the perturbation?",
        "A cell's latent state is meant to fall into a basal part, what the cell would be anyway, "
        "and the effect of its perturbation. If it does, nothing can tell from the basal part of a "
        "cell which perturbation the cell received.",
        (
            Figure("basal", "latents", "basal.tsv", (TRAINING,)),
            Figure("state_map", "latents", "state_map.tsv", (TRAINING, STATE_MAP)),
            Table(
                "basal.tsv",
                'Accuracy of the classifier by state, perturbation (against control; "all" is all '
                "at once) and true or shuffled labels.",
                (TRAINING,),
            ),
        ),
    ),
    Section(
        "truth",
        "How much of the truth is recovered?",
        "The screen is simulated, so it is known which perturbation moves which latent factor, and "
        "where each cell lies along it.",
        (
            Figure("truth", "truth", "matched_masks.tsv", (TRAINING, TRUTH)),
            Figure("recovery", "truth", "recovery.tsv", (TRAINING, TRUTH)),
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
