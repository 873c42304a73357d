"""What every front door does: open the log, do the work, and speak plainly when it fails."""

import logging
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samsvae.chain import keep_records
from samsvae.errors import InputError, Interrupted
from samsvae.runtime.by_hand import run_by_hand

logger = logging.getLogger("samsvae")

IN_LOG_ALONE = {"to_terminal": False}


def run_job(main: Callable[[Any], None], snakemake: Any | None) -> None:
    """Run a front door's `main` with its log open, and keep a record of what it made.

    Progress goes to the terminal and to the rule's log file; warnings of libraries and tracebacks
    go to the log file alone. Whatever stops a job is told in a sentence. (Numerical libraries get
    the rule's threads from Snakemake, by OMP_NUM_THREADS and its like.)

    Parameters
    ----------
    main
        Takes Snakemake's job object.
    snakemake
        The job object that Snakemake gives to a script; None where it is run by hand.
    """
    if snakemake is None:
        run_by_hand(main, sys.argv[1:])
        return
    logging.raiseExceptions = False  # where the disk is full, a log is the least of what is lost
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _end)
    with log_path.open("w", encoding="utf-8", buffering=1) as log_file:
        _send_to(log_file, str(snakemake.rule), dict(snakemake.wildcards.items()))
        status = _status(main, snakemake, log_path)
    signal.signal(signal.SIGTERM, before)
    if status:
        sys.exit(status)


def _status(main: Callable[[Any], None], snakemake: Any, log_path: Path) -> int:
    """Do the work, and give the status that the process ends with."""
    try:
        main(snakemake)
        keep_records(snakemake)
    except InputError as error:
        logger.error("%s", error)
        return 1
    except Interrupted as error:
        logger.warning("%s", error)
        return 128 + error.signal
    except KeyboardInterrupt:
        logger.warning("interrupted")
        return 128 + signal.SIGINT
    except Exception as error:
        logger.error(
            "stopped by an unexpected error, %s: %s. The whole of it is in %s",
            type(error).__name__, error, log_path,
        )  # fmt: skip
        logger.debug("the error:", exc_info=True, extra=IN_LOG_ALONE)
        return 1
    return 0


def _end(number: int, _: Any) -> None:
    """Leave by the usual way, so that half-written files are removed."""
    raise Interrupted(f"asked to end by {signal.Signals(number).name}", number)


def _send_to(log_file: Any, rule: str, wildcards: dict[str, str]) -> None:
    what = " ".join([rule, *wildcards.values()])
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter(f"[{what}] %(message)s"))
    terminal.addFilter(lambda record: record.name != "py.warnings")
    terminal.setLevel(logging.INFO)
    file = logging.StreamHandler(log_file)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[terminal, file], force=True)
    logger.setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    warnings.simplefilter("default")
