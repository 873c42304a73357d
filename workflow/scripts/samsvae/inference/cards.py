"""GPUs of one machine, shared out so that no two jobs are on one card."""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TRIES = 1.0


def take_card(identities: Sequence[str], folder: str | Path | None = None) -> int:
    """Take a card for as long as this process lives, and wait while all are taken.

    A taken card is a locked file, and the system itself unlocks it when the process ends, however
    it ends. Snakemake's ``--resources gpu=N`` spares the waiting.

    Parameters
    ----------
    identities
        What names each card that this process may use, alike for all processes of the machine.
    folder
        Where the files are; the machine's temporary folder by default.

    Returns
    -------
    int
        Position of the card in `identities`; where files cannot be locked, the first.
    """
    waited = False
    while True:
        for position, identity in enumerate(identities):
            path = Path(folder or tempfile.gettempdir()) / f"samsvae-gpu-{identity}.lock"
            try:
                handle = _open(path)
            except OSError as error:
                logger.info("cards cannot be shared out (%s): using the first one", error)
                return 0
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return position  # the handle stays open, and the card is taken
            except BlockingIOError:
                os.close(handle)
            except OSError as error:
                os.close(handle)
                logger.info("cards cannot be shared out (%s): using the first one", error)
                return 0
        if not waited:
            logger.info("waiting for a GPU: all %d are taken by other jobs", len(identities))
            waited = True
        time.sleep(SECONDS_BETWEEN_TRIES)


def _open(path: Path) -> int:
    """Open a file that another user may have made, and no link."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444)
