"""What ends a job in plain words rather than with a traceback."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it."""


class DivergenceError(InputError, FloatingPointError):
    """A training has left the range of numbers; the message says where, why and what to change."""


class StorageError(InputError, OSError):
    """A file cannot be written; the message says which, why and what to do."""


class Interrupted(BaseException):
    """The job was asked to end, and does so in good order; no error, so nothing should catch it.

    Attributes
    ----------
    signal
        Number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
