"""Names of cells, genes, perturbations and gene sets: what may stand in a table or a figure."""

import itertools
import unicodedata
from collections.abc import Iterable, Sequence

from samsvae.errors import InputError

MOST_CHARACTERS = 200
AT_ONCE = 10_000  # names of cells; there may be millions

# control characters (line breaks, tabs, ...), halves of characters, separators of lines and
# paragraphs, and marks that show nothing or turn the direction of what follows
UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp", "Cf")


def check_text(texts: Iterable[str], what: str, where: str) -> None:
    """Refuse what cannot stand in a table or figure: nothing, control characters, endless text.

    Any other character will do, as tables and figures escape what they must.

    Raises
    ------
    InputError
        Quoting the first such text.
    """
    waiting = iter(texts)
    while some := list(itertools.islice(waiting, AT_ONCE)):
        if _is_plain(some):
            continue
        for text in some:
            fault = text_fault(text)
            if fault:
                raise InputError(
                    f"{where}: the {what} {text[:MOST_CHARACTERS]!r} {fault}. Rename it in the "
                    "file."
                )


def _is_plain(texts: Sequence[str]) -> bool:
    """Whether nothing can be wrong with any of them: printable ASCII without blanks, not long."""
    joined = "".join(texts)
    sizes = [len(text) for text in texts]
    return (
        joined.isascii()
        and joined.isprintable()
        and " " not in joined
        and min(sizes) > 0
        and max(sizes) <= MOST_CHARACTERS
    )


def text_fault(text: str) -> str | None:
    """Say what is wrong with a name, if anything is."""
    if not text.strip():
        return "is empty"
    if len(text) > MOST_CHARACTERS:
        return f"is longer than {MOST_CHARACTERS} characters"
    if text.isascii() and text.isprintable():
        return None
    if any(unicodedata.category(character) in UNPRINTABLE for character in text):
        return "has a control character"
    return None
