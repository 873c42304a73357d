"""One thing to know about a screen."""

from collections.abc import Collection
from dataclasses import dataclass

ERROR = "error"
WARNING = "warning"
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """Something wrong, or strange.

    Attributes
    ----------
    severity
        ``error``: the screen cannot be used as it is. ``warning``: it can, but should be looked
        at.
    name
        What it is, in a few words.
    message
        Where it is, why it matters, and what to do about it.
    """

    severity: str
    name: str
    message: str


def some(names: Collection[object]) -> str:
    """Name the first few of many."""
    shown = ", ".join(str(name) for name in list(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN:,} more"
