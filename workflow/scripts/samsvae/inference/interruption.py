"""Signals that ask a training to end, heard between two steps."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# Slurm sends the first some seconds before it kills; a user's Ctrl-C is the second
ASKING = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def asked_to_end() -> Iterator[Sequence[signal.Signals]]:
    """Note signals that ask the process to end, rather than end at once.

    The second one of a kind does what it did before, so that a process that hangs can be ended.

    Yields
    ------
    sequence of Signals
        Those that came so far, empty at first. Outside the main thread, where Python hears no
        signal, it stays empty.
    """
    came: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def note(number: int, _: Any) -> None:
        asking = signal.Signals(number)
        came.append(asking)
        signal.signal(asking, before[asking])

    before = {number: signal.getsignal(number) for number in ASKING}
    for number in ASKING:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number in ASKING:
            signal.signal(number, before[number])
