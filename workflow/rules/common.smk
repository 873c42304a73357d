# The configuration, what it asks for, and how rules refer to code.
import functools
import os
import re
import sys
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.common.configfile import load_configfile

HERE = Path(workflow.basedir)
SCRIPTS = HERE / "workflow" / "scripts"
sys.path.insert(0, str(SCRIPTS))
# HDF5 need not lock files, which some shared disks cannot: whatever is written has a name of its
# own until it is whole
os.environ.update(
    PYTHONPATH=os.pathsep.join([str(SCRIPTS), os.getenv("PYTHONPATH", "")]),
    HDF5_USE_FILE_LOCKING="FALSE",
)

from samsvae.chapters import (
    COUNTS,
    FRACTIONS,
    GENE_SETS,
    GRIDS,
    GROUPS,
    MASKS,
    PAPER,
    STATE_MAP,
    TRAINING,
    TRUTH,
)
from samsvae.config.configuration import (
    gene_set_names,
    merge,
    read_schema,
    validate,
)
from samsvae.contents import SHOWN_FIGURES, figures_of, tables_of
from samsvae.errors import InputError
from samsvae.experiments import (
    can_be_fitted_together,
    conditions,
    has_mask,
    is_ceiling,
    is_trained,
    runs,
    splits,
)
from samsvae.grids import candidates, expanded, has_grid
from samsvae.models.registry import MODELS
from samsvae.preflight import check_inputs
from samsvae.runtime.digest import code_digest
from samsvae.sources.registry import (
    DIVIDED_BY_SOURCE,
    DOWNLOADS_FOLDER,
    GAUSSIAN,
    PUBLISHED,
    SIMULATORS,
    WITH_PROGRAMMES,
    download_of,
)
from samsvae.statistics.published import is_published

STARTED = time.time()
# while it reads its rules, Snakemake does not say which targets it was given
ONLY_CHECKED = "check" in sys.argv

try:
    user_config = workflow.config_settings.overwrite_config
    config = validate(
        merge(load_configfile(HERE / "config.yaml"), user_config),
        read_schema(HERE / "workflow" / "schemas" / "config.schema.yaml"),
    )
    # the check tells all that is wrong with a screen, not just the first
    if workflow.is_main_process and not ONLY_CHECKED:
        check_inputs(config)
except InputError as error:
    raise WorkflowError(str(error)) from None

EXPERIMENTS = config["experiments"]
MODEL_SETTINGS = expanded(config["models"])
# by the name of a model with a grid, its candidates, one of which stands for it on each split
CANDIDATES = {n: candidates(n, m) for n, m in config["models"].items() if has_grid(m)}
TRAINED = [name for name, model in MODEL_SETTINGS.items() if is_trained(model)]
FITTED = [name for name in TRAINED if name not in CANDIDATES]
# of each of them, all seeds are trained as one program
FITTED_TOGETHER = [
    name
    for name in FITTED
    if config["training"]["seeds_together"]
    and can_be_fitted_together(MODEL_SETTINGS[name])
]
HOW_TO_FIT = {k: v for k, v in config["training"].items() if k != "seeds_together"}
CEILINGS = [name for name, model in MODEL_SETTINGS.items() if is_ceiling(model)]
BASELINES = [name for name in MODEL_SETTINGS if name not in TRAINED + CEILINGS]
SCREENS = config["screens"]

SCREEN = "results/screens/{screen}/screen.h5ad"
PROGRAMMES = "results/screens/{screen}/programmes.gmt"
SPLIT = "results/{experiment}/{split}"
RUN = f"{SPLIT}/{{model}}/seed{{seed}}"
TABLES = "results/{experiment}/tables"
FIGURES = "results/{experiment}/figures"


def one_of(names):
    """Match any of some names and nothing else; nothing at all if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


wildcard_constraints:
    screen=one_of(config["screens"]),
    experiment=one_of(EXPERIMENTS),
    split=one_of(sorted({name for e in EXPERIMENTS.values() for name in splits(e)})),
    model=one_of(MODEL_SETTINGS),
    seed=r"\d+",


def from_source(*sources):
    """Match the screens of some sources."""
    return one_of([name for name, s in SCREENS.items() if s["source"] in sources])


@functools.cache
def uses(script, *modules):
    """Digest the library modules behind a script, so that editing one reruns its rules alone."""
    return code_digest(SCRIPTS / f"{script}.py", *modules)


def uses_model(script):
    """The same with the module of the job's kind of model, if any; editing it spares other kinds."""

    def digest(wildcards):
        kind = MODEL_SETTINGS[wildcards.model]["kind"]
        return uses(script, *MODELS.get(kind, ())[:1])

    return digest


def uses_models(script):
    """The same with the modules of all kinds of models of the job's runs."""

    def digest(wildcards):
        kinds = {MODEL_SETTINGS[run["model"]]["kind"] for run in runs_shown(wildcards)}
        return uses(script, *sorted(MODELS[kind][0] for kind in kinds))

    return digest


def uses_source(script):
    """Digest a script and its library with the module of the simulator of the job's screen."""

    def digest(wildcards):
        return uses(script, SIMULATORS[SCREENS[wildcards.screen]["source"]][0])

    return digest


def screen_of(wildcards):
    """The screen of an experiment."""
    return SCREEN.format(screen=EXPERIMENTS[wildcards.experiment]["screen"])


def has_counts(experiment):
    """Whether an experiment's screen has counts, and so effects on expression."""
    return source_of(experiment) != GAUSSIAN


def is_simulated(experiment):
    """Whether the truth of an experiment's screen is known."""
    return source_of(experiment) in SIMULATORS


def has_published_results(experiment):
    """Whether the paper reports results of such an experiment."""
    split = EXPERIMENTS[experiment]["split"]["kind"]
    return is_published(source_of(experiment), split)


def source_of(experiment):
    """The source of an experiment's screen."""
    return SCREENS[EXPERIMENTS[experiment]["screen"]]["source"]


def runs_of(experiment, split=None, models=None, reference=False):
    """Runs of an experiment as {split, model, seed}; those of the first split and seed if
    `reference`."""
    entry = EXPERIMENTS[experiment]
    first = (next(iter(splits(entry))), entry["seeds"][0])
    return [
        vars(run)
        for run in runs(entry, MODEL_SETTINGS)
        if (split is None or run.split == split)
        and (models is None or run.model in models)
        and (not reference or (run.split, run.seed) == first)
    ]


def run_of(wildcards):
    """The run that a job belongs to."""
    return {
        "split": wildcards.split,
        "model": wildcards.model,
        "seed": int(wildcards.seed),
    }


def runs_shown(wildcards):
    """The trained runs that a job is about: its own, or else the reference of every model."""
    if "model" in wildcards.keys():
        return [run_of(wildcards)]
    return runs_of(wildcards.experiment, models=TRAINED, reference=True)


def files_of(experiment, name, **chosen):
    """The file of that name of each run that :func:`runs_of` chooses."""
    return [
        f"{RUN}/{name}".format(experiment=experiment, **run)
        for run in runs_of(experiment, **chosen)
    ]
