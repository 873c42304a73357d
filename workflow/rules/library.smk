# The library that rules and scripts call, and other files of the workflow: beside this file, or,
# where the workflow is fetched from a remote host, the installed library and Snakemake's cache.
import importlib
import os
import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

HERE = workflow.current_basedir
ROOT = Path(str(HERE)).parents[1]
IS_LOCAL = (ROOT / "workflow" / "rules").is_dir()


def source(path):
    """Path of a file of this workflow, fetched if the workflow is remote."""
    return str(ROOT / path) if IS_LOCAL else workflow.source_path(f"../../{path}")


def installed_library():
    """The folder of the installed library, which must be of the workflow's own version."""
    text = Path(source("workflow/scripts/samsvae/__init__.py")).read_text()
    version = re.search(r'^__version__ = "(.+)"', text, re.MULTILINE)[1]
    try:
        library = importlib.import_module("samsvae")
        found = library.__version__
    except ImportError:
        found = "none"
    if found == version:
        return Path(library.__file__).parent
    if hasattr(HERE, "host"):
        address = f"git+https://{HERE.host}/{HERE.repo}@{HERE.ref}"
    elif hasattr(HERE, "repo_path"):
        address = f"git+file://{HERE.repo_path}@{HERE.ref}"
    else:
        address = "git+ADDRESS-OF-THE-REPOSITORY"
    raise WorkflowError(
        f"This workflow is remote and needs its library, samsvae {version}, where Snakemake runs; "
        f"installed there: {found}. This command installs it:\n"
        f'    {sys.executable} -m pip install "{address}"'
    )


def linked(library):
    """A folder that holds the library alone, so that all else comes from where scripts run, such
    as an environment of conda's."""
    folder = Path(".snakemake", "samsvae").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "samsvae"
    if not link.exists() or not link.samefile(library):
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return folder


LIBRARY = str(
    ROOT / "workflow" / "scripts" if IS_LOCAL else linked(installed_library())
)
sys.path.insert(0, LIBRARY)
# HDF5 need not lock files, which some shared disks cannot: whatever is written has a name of its
# own until it is whole
os.environ.update(
    PYTHONPATH=os.pathsep.join([LIBRARY, os.getenv("PYTHONPATH", "")]),
    HDF5_USE_FILE_LOCKING="FALSE",
)
