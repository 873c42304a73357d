"""The one exception that speaks to the user."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it."""
