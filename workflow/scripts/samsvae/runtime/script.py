"""Runner of the scripts of rules: as a job of Snakemake, or by hand for a debugger; its log.

``python -m pdb workflow/scripts/train_model.py RESULT`` runs a script with the inputs and
parameters of the job that makes RESULT. Errors are not caught, and no record is written.
"""

import argparse
import gc
import io
import logging
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from samsvae.runtime.errors import InputError, Interrupted
from samsvae.runtime.provenance import write_records

SNAKEFILE = Path(__file__).resolve().parents[4] / "Snakefile"


@dataclass(frozen=True)
class Job:
    """Substitute of the job object that Snakemake passes to a script.

    Attributes
    ----------
    rule
        Name of the rule.
    input, output, params, log
        Items of the job, by name and position.
    wildcards
        Wildcards of the job, by name.
    config
        The validated configuration.
    threads
        Number of threads.
    resources
        Empty: resources are for clusters.
    """

    rule: str
    input: Any
    output: Any
    params: Any
    log: Any
    wildcards: Any
    config: dict[str, Any]
    threads: int = 1
    resources: dict[str, Any] = field(default_factory=dict)


def run_by_hand(main: Callable[[Any], None], arguments: Sequence[str]) -> None:
    """Run the `main` of a script on the job that makes a result.

    Parameters
    ----------
    main
        Function of Snakemake's job object.
    arguments
        Command line: the result, and options.
    """
    parser = argparse.ArgumentParser(
        description="Run a script on the job that makes a result, and write its outputs."
    )
    parser.add_argument("result", help="path of a result of the script, in the working directory")
    parser.add_argument("--configfile", nargs="+", default=[], help="as for snakemake")
    parser.add_argument("--threads", type=int, default=1, help="1 by default, as in most rules")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(job_of(given.result, given.configfile, given.threads))


def job_of(
    result: str,
    configfiles: Sequence[str | Path] = (),
    threads: int = 1,
    snakefile: str | Path = SNAKEFILE,
) -> Job:
    """Plan the job that makes a result, without running anything.

    Parameters
    ----------
    result
        Path of an output, in the working directory.
    configfiles
        Configuration files in addition to the default.
    threads
        Number of threads that the script may use.
    snakefile
        The workflow.

    Returns
    -------
    Job
        Substitute of Snakemake's object. The folders of its outputs exist.

    Raises
    ------
    InputError
        If no rule makes the result, or one of its inputs is missing.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.dag import DAG
    from snakemake.io import is_flagged
    from snakemake.jobs import Job as SnakemakeJob
    from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

    with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
        opened = api.workflow(
            resource_settings=ResourceSettings(cores=threads),
            config_settings=ConfigSettings(configfiles=[Path(file) for file in configfiles]),
            snakefile=Path(snakefile),
        )
        opened.dag()
        workflow = opened._workflow
        rules = [rule for rule in workflow.rules if rule.is_producer(result)]
        if not rules:
            raise InputError(
                f"{result}: no rule makes this. Give a path as it stands below 'results', and the "
                "configuration that it belongs to by --configfile."
            )
        rule = max(rules)  # by the ruleorder of the workflow
        planned = SnakemakeJob(rule, DAG(workflow, rules=rules), rule.get_wildcards(result))
        # an ancient input only defines the order of jobs
        needed = [str(path) for path in planned.input if not is_flagged(path, "ancient")]
        missing = [path for path in needed if not Path(path).exists()]
        if missing:
            raise InputError(
                f"{result}: its inputs are missing. Make them first: snakemake {' '.join(missing)}"
            )
        for path in [*planned.output, *planned.log]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        return Job(
            rule=str(rule.name),
            input=planned.input,
            output=planned.output,
            params=planned.params,
            log=planned.log,
            wildcards=planned.wildcards,
            config=workflow.config,
            threads=threads,
        )


logger = logging.getLogger("samsvae")

IN_LOG_ALONE = {"to_terminal": False}


def run_job(main: Callable[[Any], None], snakemake: Any | None) -> None:
    """Run the `main` of a script with its log, and write records of its outputs.

    Progress goes to the terminal and to the rule's log file; warnings of libraries and tracebacks
    go to the log file alone. An error ends the job with a one-line message. (Snakemake sets the
    threads of numerical libraries by OMP_NUM_THREADS and similar variables.)

    Parameters
    ----------
    main
        Function of Snakemake's job object.
    snakemake
        The job object that Snakemake passes to a script; None if run by hand.
    """
    if snakemake is None:
        run_by_hand(main, sys.argv[1:])
        return
    # What is imported stays until the end. Without this, the garbage collector visits all of it
    # again in the job and twice when Python ends, which takes as long as importing PyTorch.
    gc.freeze()
    logging.raiseExceptions = False  # a full disk must not fail a job by its log
    log_path = Path(snakemake.log[0])
    log_path.parent.mkdir(parents=True, exist_ok=True)
    before = signal.signal(signal.SIGTERM, _end)
    with log_path.open("w", encoding="utf-8", buffering=1) as log_file:
        _send_to(log_file, str(snakemake.rule), dict(snakemake.wildcards.items()))
        status = _status(main, snakemake, log_path)
    signal.signal(signal.SIGTERM, before)
    gc.freeze()
    if status:
        sys.exit(status)


def _status(main: Callable[[Any], None], snakemake: Any, log_path: Path) -> int:
    """Run `main`, and return the exit status."""
    try:
        main(snakemake)
        write_records(snakemake)
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
            "unexpected error, %s: %s. The traceback is in %s",
            type(error).__name__, error, log_path,
        )  # fmt: skip
        logger.debug("the error:", exc_info=True, extra=IN_LOG_ALONE)
        return 1
    return 0


def _end(number: int, _: Any) -> None:
    """Raise an exception, so that temporary files are removed."""
    raise Interrupted(f"interrupted by {signal.Signals(number).name}", number)


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


SECONDS_BETWEEN_LINES = 10.0
LINE = "{desc}{n_fmt}/{total_fmt} ({percentage:.0f} %)  {rate_noinv_fmt}  {remaining} left{postfix}"


class Progress(tqdm):
    """Progress bar of tqdm that writes lines to the log.

    The log is in the terminal and in the file of the job. It draws no bar: jobs that run side by
    side share a terminal, where one bar would overwrite another.

    Parameters
    ----------
    what
        Description at the start of each line, such as ``cell``.
    total
        Total amount of work.
    unit
        Unit of the speed, such as ``' cells'``.
    done
        Amount of work that was done before.
    every
        Smallest number of seconds between lines; by default :data:`SECONDS_BETWEEN_LINES`. With 0,
        each update logs a line.
    **options
        Options of :class:`tqdm.tqdm`.
    """

    monitor_interval = 0  # no thread beside the work
    total: float

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        done: int = 0,
        every: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            desc=f"{what} ",
            total=total,
            unit=unit,
            initial=done,
            bar_format=LINE,
            mininterval=SECONDS_BETWEEN_LINES if every is None else every,
            miniters=1,
            smoothing=1,  # the speed since the last line: a GPU spends the first steps on compiling
            delay=1e-9,  # no line before anything is done
            file=io.StringIO(),
            leave=False,
            disable=False,
            **options,
        )

    def update(self, n: float | None = 1) -> bool | None:
        """Add work, and log a line when one is due."""
        self.total = max(self.total, self.n + (n or 0))  # a file may be longer than published
        return super().update(n)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log a line; the messages by which tqdm clears a bar are ignored."""
        if msg is None:
            logger.info("%s", str(self))

    @property
    def elapsed(self) -> str:
        """Time since the work began, as ``[hours:]minutes:seconds``."""
        return str(self.format_interval(self.format_dict["elapsed"]))
