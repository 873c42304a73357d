"""Sources of screens and published files: keys, bounds, defaults and facts, each said once.

Imports neither torch nor scanpy, since the Snakefile imports it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from samsvae.config.schema import UNIQUE, Count, FilePath, NotNegative, Positive, Section, Words

Fraction = Annotated[float, Field(ge=0, lt=1)]
NotNegativeNumber = Annotated[float, Field(ge=0)]
UniqueWords = Annotated[list[Words], Field(json_schema_extra=UNIQUE)]
ExpectedSize = Annotated[
    Count | Annotated[str, Field(pattern="^published$")] | None,
    Field(description='How many there should be, a number or "published"; null for any number.'),
]
Copy = Annotated[
    Literal["original", "scperturb"],
    Field(
        description='"original" is the file of the authors, "scperturb" the copy of the scPerturb '
        "collection, a smaller download."
    ),
]
PublishedPath = Annotated[
    FilePath | None,
    Field(description="The file if you have it already, which is verified; null to download it."),
]
SimulationSeed = Annotated[NotNegative, Field(description="Seed of the simulation.")]
EffectSize = Annotated[
    NotNegativeNumber,
    Field(description="Mean of the absolute effects, in basal standard deviations."),
]
EffectSpread = Annotated[
    NotNegativeNumber, Field(description="Standard deviation of the absolute effects.")
]
DecoderLayers = Annotated[Count, Field(description="Layers of the decoder that makes the cells.")]
TrainCells = Annotated[
    Count,
    Field(
        description="Cells of each perturbation, and of control, that the split "
        '"as_simulated" trains on.'
    ),
]
ValidationCells = Annotated[Count, Field(description="Those that it validates on.")]
TestCells = Annotated[Count, Field(description="Those that it tests on.")]
GuideThreshold = Annotated[
    Count | None,
    Field(
        description="UMIs of a guide from which on a cell has it; null if the values are no "
        "counts, or a mixture decides."
    ),
]
GuideMixture = Annotated[
    Literal["poisson_gaussian", "poisson"] | None,
    Field(
        description="The mixture that decides for each guide which cells have it, by its UMI "
        'counts: "poisson_gaussian" on log2 counts (Replogle et al. 2020), or "poisson" on '
        "counts, two Poisson components; null for none."
    ),
]
ValuesAreDoses = Annotated[
    bool, Field(description="Whether values above 1 are doses of the perturbation.")
]
GuideGeneColumn = Annotated[
    Words | None,
    Field(
        description="Column of var with the gene of each guide, such as intended_target_name; "
        "null if guide_table or guide_pattern name it, or for genes."
    ),
]

Unit = Annotated[
    Literal["combination", "perturbation"],
    Field(
        description='Whose effects are compared: "combination", those of cells with the same '
        'perturbations, or "perturbation", the marginal ones of single perturbations in all cells '
        "that have them, for screens of a high multiplicity of infection."
    ),
]

ComparedWith = Annotated[
    Literal["controls", "complement"],
    Field(
        description='What the effects of unit: perturbation are relative to: "controls", a cell '
        'without perturbations, in a linear model of all of them, or "complement", all cells '
        "without the perturbation, whatever others these have."
    ),
]


class Source(Section):
    """One source of cells.

    Attributes
    ----------
    name
        What the configuration calls it.
    simulator
        Module, class of settings and function that make a screen; None for a screen of a file.
    brings_gene_sets
        Whether it comes with gene sets, the programmes that its factors move.
    divides_cells
        Whether it makes cells for each part of a split.
    has_counts
        Whether its measurements are counts.
    is_published
        Whether its file is one of the downloads.
    acts_by
        How its perturbations act on their target genes, where that is known.
    """

    name: ClassVar[str]
    simulator: ClassVar[tuple[str, str, str] | None] = None
    brings_gene_sets: ClassVar[bool] = False
    divides_cells: ClassVar[bool] = False
    has_counts: ClassVar[bool] = True
    is_published: ClassVar[bool] = False
    acts_by: ClassVar[str | None] = None


class Simulated(Source):
    """Negative-binomial counts with the library sizes and gene means of a real screen.

    Each perturbation moves a few latent factors, and each factor one named gene programme.
    """

    name = "simulated"
    simulator = ("samsvae.sources.simulated", "Simulation", "simulate")
    brings_gene_sets = True
    acts_by = "knockdown"

    seed: SimulationSeed = 0
    n_genes: Count = Field(300, description="Measured genes.")
    n_factors: Count = Field(6, description="Latent factors that perturbations can move.")
    n_perturbations: Count = Field(24, description="Genes targeted alone.")
    n_pairs: NotNegative = Field(12, description="Pairs targeted together.")
    n_controls: Count = Field(600, description="Control cells.")
    cells_per_perturbation: Count = Field(120, description="Cells of each perturbation.")
    programme_size: Count = Field(20, description="Genes moved by a factor.")
    factors_per_perturbation: float = Field(
        1.3, ge=1, description="Factors moved by a perturbation (mean of a shifted Poisson)."
    )
    inert_fraction: Fraction = Field(0.125, description="Fraction of targets that move nothing.")
    effect_size: Positive = Field(
        2.0,
        description="Mean absolute shift of a factor in units of its basal standard deviation.",
    )
    median_library_size: Positive = Field(1500, description="Median counts per cell.")
    n_batches: Count = Field(1, description="Batches of cells.")
    batch_effect: NotNegativeNumber = Field(
        0.3, description="Standard deviation of a batch's shifts of the logits of genes."
    )
    batch_imbalance: Fraction = Field(
        0.0, description="Fraction of the control cells that are moved to the first batch."
    )
    n_contexts: Count = Field(
        1,
        description="Contexts of cells, such as cell lines, which differ in the logits of genes by "
        "a standard deviation of 0.5.",
    )
    context_specific: Fraction = Field(
        0.0, description="Fraction of the targets that act in the first context alone."
    )
    guides_per_target: Count = Field(
        1, description="Guides of each target; with one, the screen names no guides."
    )
    dead_guides: Fraction = Field(0.0, description="Fraction of guides without an effect.")
    escapers: Fraction = Field(
        0.0, description="Fraction of cells with a guide that are not perturbed."
    )
    knock_down: NotNegativeNumber = Field(
        0.0,
        description="How far the log2 of a target's own expression is lowered; 0 for targets that "
        "are not measured.",
    )
    guides_per_cell: NotNegativeNumber = Field(
        0.0,
        description="Mean number of targets of a cell beside control cells, drawn at random as at "
        "a high multiplicity of infection; 0 for cells of one target or a designed pair. A target "
        "has cells_per_perturbation cells on average.",
    )
    n_features: NotNegative = Field(
        0,
        description="Features of targets, which their effects follow; 0 for effects that are drawn "
        "without features.",
    )
    feature_strength: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Fraction of the variance of masks and effects that features explain; 0 for "
        "features that tell nothing.",
    )
    unit: Unit = "combination"
    compared_with: ComparedWith = "controls"


class SimulatedAdditive(Source):
    """Gaussian measurements under additive sparse shifts of a latent state.

    Models need the likelihood "normal". Effects on expression are not defined, so an experiment on
    it compares bounds and the recovery of the truth, and knows no baselines.
    """

    name = "simulated_additive"
    simulator = ("samsvae.sources.simulated", "AdditiveSimulation", "additive_screen")
    divides_cells = True
    has_counts = False

    seed: SimulationSeed = 0
    n_latent: Count = Field(15, description="Latent dimensions.")
    n_perturbations: Count = Field(100, description="Perturbations.")
    n_genes: Count = Field(100, description="Measured genes.")
    mask_probability: float = Field(
        2 / 15,
        ge=0,
        le=1,
        description="Probability that a perturbation moves a latent dimension.",
    )
    effect_size: EffectSize = 5.0
    effect_spread: EffectSpread = 0.5
    n_layers: DecoderLayers = 4
    noise_fraction: Fraction = Field(
        0.2, description="Fraction of each gene's variance that is noise."
    )
    n_train: TrainCells = 500
    n_validation: ValidationCells = 100
    n_test: TestCells = 100


class SimulatedSvaePlus(Source):
    """Poisson counts; every perturbation moves one to three latent dimensions."""

    name = "simulated_svae_plus"
    simulator = ("samsvae.sources.simulated", "SvaePlusSimulation", "svae_plus_screen")
    divides_cells = True

    seed: SimulationSeed = 0
    n_latent: Count = Field(15, description="Latent dimensions.")
    n_perturbations: Count = Field(100, description="Perturbations.")
    n_genes: Count = Field(100, description="Measured genes.")
    effect_size: EffectSize = 5.0
    effect_spread: EffectSpread = 0.5
    n_layers: DecoderLayers = 4
    median_library_size: Positive = Field(1000.0, description="Median counts per cell.")
    library_size_spread: NotNegativeNumber = Field(
        0.3, description="Standard deviation of the logarithm of the library size."
    )
    n_train: TrainCells = 500
    n_validation: ValidationCells = 100
    n_test: TestCells = 100


class Norman(Source):
    """Norman et al. 2019, CRISPRa of single genes and pairs in K562 cells.

    Of the 5,000 most variable genes. A file of another size than expected is refused.
    """

    name = "norman"
    is_published = True
    acts_by = "activation"

    copy_: Copy = Field("original", alias="copy")
    path: PublishedPath = None
    genes: FilePath | None = Field(
        None,
        description='For the copy "scperturb", which does not mark the authors\' genes, those to '
        "keep: a text file with a symbol on each line, or the original h5ad file; null for the "
        "most variable.",
    )
    n_genes: Count = Field(5000, description='For "scperturb" without genes, how many to choose.')
    expected_cells: ExpectedSize = "published"
    expected_genes: ExpectedSize = "published"
    expected_target_genes: ExpectedSize = "published"


class Replogle(Source):
    """Replogle et al. 2022, genome-wide CRISPRi in K562 cells.

    Of these, the 681 genes whose knock-down changes expression, and the genes that respond. A file
    of another size than expected is refused.
    """

    name = "replogle"
    is_published = True
    acts_by = "knockdown"

    copy_: Copy = Field("original", alias="copy")
    path: PublishedPath = None
    seed: NotNegative = Field(0, description="Seed of the choice of control cells.")
    n_controls: Count = Field(2000, description="Control cells kept.")
    expected_cells: ExpectedSize = "published"
    expected_genes: ExpectedSize = "published"
    expected_guide_pairs: ExpectedSize = "published"


class GuideColumns(Section):
    """Columns of obs, one for each perturbation or guide.

    Their values are 1 where a cell had it and 0 elsewhere; or its UMI counts, with threshold or
    mixture; or doses, with doses: true.
    """

    prefix: str = Field(
        description="What the columns' names begin with; the rest names the perturbation."
    )
    except_: list[str] = Field(
        [], alias="except", description="Columns that begin so and are no perturbations."
    )
    threshold: GuideThreshold = None
    mixture: GuideMixture = None
    doses: ValuesAreDoses = False


class GuideMatrix(Section):
    """Matrix in obsm, cells x perturbations or guides, with values as in perturbation_columns."""

    obsm: Words = Field(description="Its key in obsm.")
    names: str | None = Field(
        None,
        description="Key of uns with the names of its columns; null if it is a table that names "
        "them.",
    )
    threshold: GuideThreshold = None
    mixture: GuideMixture = None
    doses: ValuesAreDoses = False


class GuideFeatures(Section):
    """Guides that were counted beside the genes, as Cell Ranger does with feature barcodes.

    They are in the same matrix, and never among the genes of the screen.
    """

    feature_type: Words = Field(
        "CRISPR Guide Capture", description='Their type in var["feature_types"].'
    )
    gene_column: GuideGeneColumn = None
    threshold: GuideThreshold = None
    mixture: GuideMixture = None
    doses: ValuesAreDoses = False


class GuideModality(Section):
    """The modality of an h5mu file whose features are guides, with UMI counts, or 0 and 1.

    Cells are matched by name; one that it does not have has no guide.
    """

    name: Words = Field(description="Its name, for instance guide, gdo or crispr.")
    layer: str | None = Field(
        None, description="Layer of it, such as guide_assignment; null for X."
    )
    gene_column: GuideGeneColumn = None
    threshold: GuideThreshold = None
    mixture: GuideMixture = None
    doses: ValuesAreDoses = False


class Pattern(Section):
    """A regular expression in place of labels."""

    pattern: Words = Field(description="A regular expression that is searched for in a label.")


class H5ad(Source):
    """An AnnData file with raw counts."""

    name = "h5ad"

    path: FilePath = Field(
        description="The file (h5ad or h5mu) or zarr store, a path in one line and without braces."
    )
    perturbation_column: Words | None = Field(
        None,
        description="Column of obs with each cell's perturbation. Exactly one of "
        "perturbation_column, perturbation_columns, perturbation_matrix, guide_features and "
        "guide_modality is set.",
    )
    perturbation_columns: GuideColumns | None = None
    perturbation_matrix: GuideMatrix | None = None
    guide_features: GuideFeatures | None = None
    guide_modality: GuideModality | None = None
    control: Words | Annotated[list[Words], Field(min_length=1)] | Pattern = Field(
        "control",
        description="Label of control cells in perturbation_column, a list of such labels, or "
        '{pattern: "^NT"} with a regular expression that is searched for in a label. In the other '
        "forms the names of non-targeting guides, or what tables of guides call their target.",
    )
    exclude: list[str | None] | Pattern = Field(
        [],
        description='Labels whose cells are left out, such as [nan, unassigned, "*", Multiplet], '
        'or {pattern: "^multi"}. nan stands for cells without a label, too. A cell is left out if '
        "its label, or a part of it, or the gene of one of its guides is such a label.",
    )
    delimiter: Words | None = Field(
        "+",
        description="What joins the genes of a combination in perturbation_column; null if labels "
        "are never combinations.",
    )
    dose_column: str | None = Field(
        None,
        description="Column of obs with each cell's dose, a number above 0; for a combination one "
        "for each part of the label, in its order, joined by the same delimiter. Each dose is a "
        "condition of its own (A@0.5), in which the perturbation's effect is scaled by the dose. "
        "Ignored for control cells; null if every dose is 1.",
    )
    guide_column: Words | None = Field(
        None,
        description="Column of obs with each cell's guide, or guides, beside perturbation_column, "
        "whose labels are genes. The screen then knows guides as well.",
    )
    guide_table: FilePath | None = Field(
        None,
        description="Text file that names the gene of each guide: guide, tab or comma, gene on "
        "each line; or more columns, named in the first line (guide and gene, or as in Cell "
        "Ranger's feature reference). Then labels are of guides, and those of one gene become one "
        "perturbation. A table of control guides alone leaves other labels as they are.",
    )
    guide_pattern: Words | None = Field(
        None,
        description="Instead of a table, a regular expression that is searched for in a guide's "
        'name, with the gene as its one group, as in "^(.+)_g[0-9]+$".',
    )
    no_guide: Literal["control", "exclude"] | None = Field(
        None,
        description="What cells without any guide are, but for perturbation_column: "
        '"control" cells, or cells to "exclude". null excludes them where guides are called from '
        "counts, and takes them for control cells elsewhere.",
    )
    max_perturbations: Count | None = Field(
        None, description="Cells with more perturbations are left out; null keeps them all."
    )
    min_cells: NotNegative = Field(
        0,
        description="Perturbations with fewer cells are left out together with their cells. "
        "Control cells stay, and a combination is judged by its own cells.",
    )
    modality: Words | None = Field(
        None,
        description="Of an h5mu file, the modality with the counts of genes; null for the one "
        "that is called rna, gex or gene, or the only one.",
    )
    counts_layer: str | None = Field(
        None, description="Layer of raw counts, or raw for AnnData's raw; null for X."
    )
    gene_symbol_column: str | None = Field(
        None, description="Column of var with gene symbols; null for var_names."
    )
    genes: FilePath | None = Field(
        None,
        description="Text file with the symbol of a gene on each line; other genes are left out. "
        "null keeps all. Cells that have no count in the genes that are kept are left out.",
    )
    min_mean: NotNegativeNumber = Field(
        0, description="Genes with a smaller mean of counts per cell are left out."
    )
    highly_variable: Count | None = Field(
        None,
        description="Number of genes to keep, those of the largest standardised variance (Seurat "
        "v3) among those that the other filters keep. null keeps them all.",
    )
    library_size_column: Words | None = Field(
        None,
        description="Column of obs with the number of all counts of a cell, where the file has a "
        "part of the genes; null for the sum of the counts of the genes that are kept.",
    )
    batch_column: Words | Annotated[UniqueWords, Field(min_length=1)] | None = Field(
        None,
        description="Column of obs with each cell's batch, or several, which are crossed; kept as "
        "batch in the canonical screen.",
    )
    context_column: Words | None = Field(
        None,
        description="Column of obs with each cell's context (cell line, donor, time point); kept "
        "as context in the canonical screen.",
    )
    unit: Unit = "combination"
    compared_with: ComparedWith = "controls"
    covariates: UniqueWords = Field(
        [], description="Columns of obs that the canonical screen keeps, as they are."
    )
    perturbation_kind: Literal["knockdown", "knockout", "activation"] | None = Field(
        None,
        description="How perturbations act on their target genes, and so which change of the "
        "target is expected; null if unknown.",
    )


SOURCES: dict[str, type[Source]] = {source.name: source for source in Source.__subclasses__()}


def perturbation_kind(screen: Mapping[str, Any]) -> str | None:
    """Return how the perturbations of a screen's entry act, if that is known."""
    return screen.get("perturbation_kind") or SOURCES[screen["source"]].acts_by


def knows_batches(screen: Mapping[str, Any]) -> bool:
    """Whether a screen's entry says which batch a cell is of."""
    return bool(screen.get("batch_column")) or screen.get("n_batches", 1) > 1


def knows_contexts(screen: Mapping[str, Any]) -> bool:
    """Whether a screen's entry says which context a cell is of."""
    return bool(screen.get("context_column")) or screen.get("n_contexts", 1) > 1


def knows_guides(screen: Mapping[str, Any]) -> bool:
    """Whether a screen's entry says which guide a cell has, beside the gene that it targets."""
    if screen.get("guides_per_target", 1) > 1:
        return True
    forms = ("perturbation_matrix", "guide_features", "guide_modality", "perturbation_columns")
    genes = ((screen.get(form) or {}).get("gene_column") for form in forms)
    named = (screen.get(key) for key in ("guide_column", "guide_table", "guide_pattern"))
    return any(genes) or any(named)


def has_marginal_effects(screen: Mapping[str, Any]) -> bool:
    """Whether a screen's entry compares the effects of single perturbations."""
    return screen.get("unit") == "perturbation"


def download_of(screen: Mapping[str, Any]) -> str | None:
    """Name the download that a screen's entry is made of, if any."""
    source = SOURCES[screen["source"]]
    return f"{source.name}_{screen['copy']}" if source.is_published else None


def _checksum(algorithm: str, digits: int) -> Any:
    return Field(
        None,
        pattern=rf"^[0-9A-Fa-f]{{{digits}}}$",
        description=f"Its {algorithm} checksum, {digits} hexadecimal digits.",
    )


class Download(Section):
    """A published file."""

    file: str = Field(
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Its name, without folders."
    )
    urls: list[
        Annotated[
            str,
            Field(
                pattern="^https?://",
                description="An address that begins with http:// or https://.",
            ),
        ]
    ] = Field(
        min_length=1,
        description="Its addresses, which begin with http:// or https://; the next one is for "
        "when an address fails.",
    )
    size: Count = Field(description="Its size in bytes.")
    md5: str | None = _checksum("MD5", 32)
    sha256: str | None = _checksum("SHA-256", 64)
