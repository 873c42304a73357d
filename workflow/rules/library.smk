# Paths of the library and of other files of the workflow: local ones, or, for a workflow from a
# remote host, the installed library and Snakemake's cache.
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
    """Return the path of a file of this workflow; fetch it if the workflow is remote."""
    return str(ROOT / path) if IS_LOCAL else workflow.source_path(f"../../{path}")


def installed_library():
    """Return the folder of the installed library; its version must be that of the workflow."""
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
    """Return a folder with a link to the library only.

    Other packages are then imported from the environment of the script, such as conda's.
    """
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
# Some shared file systems do not support HDF5 file locking. It is not needed, since files are
# written under a temporary name and then renamed.
os.environ.update(
    PYTHONPATH=os.pathsep.join([LIBRARY, os.getenv("PYTHONPATH", "")]),
    HDF5_USE_FILE_LOCKING="FALSE",
)
# Threads that wait for each other soon sleep. By default they wait in a loop, which takes the
# processor from the thread that they wait for if another process runs beside them.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="10000")
