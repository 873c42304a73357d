"""Compares a screen with the sizes that were published."""

from collections.abc import Mapping

from samsvae.errors import InputError

PUBLISHED = "published"


def check_screen_size(
    found: Mapping[str, int],
    expected: Mapping[str, int | str | None],
    published: Mapping[str, int],
    where: str,
) -> None:
    """Refuse a file whose screen is not of the expected size.

    Parameters
    ----------
    found
        What was counted, by what it is called.
    expected
        Under the same names the number expected, ``"published"``, or None if any will do.
    published
        The published numbers.
    where
        The file, for messages.

    Raises
    ------
    InputError
        Listing all that differ.
    """
    wanted = {name: published[name] if n == PUBLISHED else n for name, n in expected.items()}
    differences = [
        f"{found[name]:,} {name} instead of {n:,}"
        for name, n in wanted.items()
        if n is not None and found[name] != n
    ]
    if differences:
        keys = ", ".join(f"expected_{name.replace(' ', '_')}" for name in expected)
        raise InputError(
            f"{where}: the screen has {'; '.join(differences)}. Is the file a part of the "
            f"published one, or another version? To use it as it is, set {keys} to its numbers, "
            "or to null."
        )
