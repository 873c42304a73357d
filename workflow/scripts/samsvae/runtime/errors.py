"""Exceptions that end a job with a message instead of a traceback."""


class InputError(ValueError):
    """Invalid input; the message says what is wrong, where, and what to change."""


class DivergenceError(InputError, FloatingPointError):
    """Diverged training (non-finite loss); the message names step, cause and remedy."""


class StorageError(InputError, OSError):
    """File that cannot be written; the message names the file, cause and remedy."""


class Interrupted(BaseException):
    """Interruption of a job by a signal; not an error, so that no handler of errors catches it.

    Attributes
    ----------
    signal
        Number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
