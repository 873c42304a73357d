"""What every front door does: open the log, do the work, and speak plainly when it fails."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samsvae.errors import InputError

logger = logging.getLogger("samsvae")


def run_job(main: Callable[[Any], None], snakemake: Any) -> None:
    """Run a front door's `main` with its log open.

    Progress goes to the terminal and to the rule's log file, warnings of libraries to the log
    file alone. An :class:`InputError` ends the job with its message and no traceback. Numerical
    libraries get the rule's threads.

    Parameters
    ----------
    main
        Takes Snakemake's job object. It imports what is heavy, so that a failing import is
        logged, too.
    snakemake
        The job object that Snakemake gives to a script.
    """
    # read by numerical libraries when they are imported; more threads than cores wait in circles
    os.environ["OMP_NUM_THREADS"] = str(snakemake.threads)
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", encoding="utf-8", buffering=1) as log_file:
        _send_to(log_file, str(snakemake.rule), dict(snakemake.wildcards.items()))
        try:
            main(snakemake)
        except InputError as error:
            logger.error("%s", error)
            sys.exit(1)
        except BaseException:
            logger.exception("stopped by an unexpected error")
            raise


def _send_to(log_file: Any, rule: str, wildcards: dict[str, str]) -> None:
    what = " ".join([rule, *wildcards.values()])
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[{what}] %(message)s"))
    terminal.addFilter(lambda record: record.name != "py.warnings")
    file = logging.StreamHandler(log_file)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[terminal, file], force=True)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
