# The configuration, the layout of results, and code digests.
import functools
import time

from snakemake.common.configfile import load_configfile

from samsvae.config.configuration import check_keys, gene_set_names, merge, validate
from samsvae.report.sections import SHOWN_FIGURES
from samsvae.runtime.errors import InputError
from samsvae.models import MODELS
from samsvae.runtime.digest import code_digest
from samsvae.runtime.layout import (
    ASSESSMENT,
    CHECK,
    FIGURES,
    PROGRAMMES,
    RUN,
    SCREEN,
    SPLIT,
    TABLES,
    Layout,
    closing_words,
    figures_listed,
    one_of,
    report_suffix,
    run_of,
)
from samsvae.sources import (
    DIVIDED_BY_SOURCE,
    DOWNLOADS_FOLDER,
    PUBLISHED,
    SIMULATORS,
    WITH_PROGRAMMES,
)

STARTED = time.time()
DEFAULTS = source("config.yaml")


def configuration():
    """Merge the defaults with the user's configuration and validate the result.

    The user's configuration is the `config` of the importing workflow, the files of the command
    line, or else the config.yaml of the folder in which Snakemake runs.
    """
    files, own = list(workflow.configfiles), [config]
    is_alone = workflow.modifier.is_main_snakefile() and not files
    if is_alone and os.path.exists("config.yaml"):
        files = ["config.yaml"]
        if not os.path.samefile("config.yaml", DEFAULTS):
            own = [load_configfile("config.yaml"), config]
    for file in files:
        check_keys(file)
    settings = functools.reduce(merge, own, load_configfile(DEFAULTS))
    return validate(settings)


try:
    config = configuration()
except InputError as error:
    raise WorkflowError(str(error)) from None

layout = Layout(config, check_files=workflow.is_main_process)
# suffix that distinguishes the reports of several configurations
REPORT = report_suffix(config["name"], workflow.overwrite_configfiles, DEFAULTS)


wildcard_constraints:
    screen=one_of(layout.screens),
    experiment=one_of(layout.experiments),
    split=one_of(layout.names_of_splits()),
    model=one_of(layout.models),
    seed=r"\d+",


@functools.cache
def uses(script, *modules):
    """Digest the library modules of a script, so that editing one reruns only its rules."""
    return code_digest(source(f"workflow/scripts/{script}.py"), *modules)


def collecting(adds={}, runs=()):
    """Build the parameters of a job that concatenates tables of runs.

    `adds` names the function that is applied to a concatenated table, as "module:function".
    """
    code = uses("collect_tables", *adds.values())
    return {"adds": adds, "runs": runs, "code": code}


def uses_model(script):
    """Digest a script and the module of the job's kind of model; other kinds do not rerun."""

    def digest(wildcards):
        kind = layout.models[wildcards.model]["kind"]
        return uses(script, *([":".join(MODELS[kind])] if kind in MODELS else []))

    return digest


def uses_models(script):
    """Digest a script and the modules of all kinds of models of the job's runs."""

    def digest(wildcards):
        kinds = {
            layout.models[run["model"]]["kind"]
            for run in layout.shown_runs_of(wildcards)
        }
        return uses(script, *sorted(":".join(MODELS[kind]) for kind in kinds))

    return digest


def uses_source(script):
    """Digest a script and the module of the simulator of the job's screen."""

    def digest(wildcards):
        return uses(script, SIMULATORS[layout.screens[wildcards.screen]["source"]][0])

    return digest
