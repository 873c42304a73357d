"""What the chapters of the report consist of, and what an experiment must have for each."""

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
        Of its module, its caption and its file.
    table
        File name among the experiment's tables; with a folder in front of it, a path.
    needs
        What an experiment must have.
    """

    name: str
    table: str
    needs: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Path of the table, with the wildcards experiment and split."""
        return self.table if "/" in self.table else f"{TABLES_FOLDER}/{self.table}"


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
class Stage:
    """A chapter of the report.

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
