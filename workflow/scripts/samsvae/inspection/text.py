"""What was found in a screen, as a person reads it and as a table."""

import textwrap

import pandas as pd

from samsvae.inspection.finding import ERROR, Finding
from samsvae.inspection.screen import Inspection

WIDTH = 100


def to_text(inspection: Inspection, name: str, path: str) -> str:
    """Write as text.

    Parameters
    ----------
    inspection
        What was found.
    name
        Of the screen.
    path
        Its file.
    """
    lines = [f"Screen {name} ({path})"]
    width = max(map(len, inspection.facts), default=0)
    lines += [f"  {fact:<{width}}  {value}" for fact, value in inspection.facts.items()]
    for title, rows in inspection.tables.items():
        widest = max(map(len, rows))
        lines += [title, *(f"  {name:<{widest}}  {value:>10,}" for name, value in rows.items())]
    errors = inspection.errors
    warnings = [finding for finding in inspection.findings if finding.severity != ERROR]
    lines += _section(errors, "Errors", "the screen cannot be used")
    lines += _section(warnings, "Warnings", "the screen can be used; look at these")
    return "\n".join(lines) + "\n"


def _section(findings: list[Finding], what: str, meaning: str) -> list[str]:
    if not findings:
        return [f"{what}: none"]
    lines = [f"{what}: {len(findings)} ({meaning})"]
    for number, finding in enumerate(findings, start=1):
        lines += _wrapped(number, finding)
    return lines


def _wrapped(number: int, finding: Finding) -> list[str]:
    text = f"{number}. {finding.name}: {finding.message}"
    return textwrap.wrap(
        text, WIDTH, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
    )


def warnings_in_words(findings: pd.DataFrame, name: str) -> str:
    """Write the warnings of a table as text; empty if there are none.

    Errors are left to the job that reads the screen, which ends with the first of them.

    Parameters
    ----------
    findings
        What :func:`to_table` gave.
    name
        Of the screen.
    """
    found = findings[findings["severity"] != ERROR]
    if not len(found):
        return ""
    listed = [Finding(*map(str, row)) for row in found.itertuples(index=False)]
    lines = [f"What the check warns of in the screen {name} (make check tells more):"]
    for number, finding in enumerate(listed, start=1):
        lines += _wrapped(number, finding)
    return "\n".join(lines) + "\n"


def to_table(inspection: Inspection) -> pd.DataFrame:
    """List the findings: severity, name, message."""
    columns = ["severity", "name", "message"]
    rows = [[getattr(finding, column) for column in columns] for finding in inspection.findings]
    return pd.DataFrame(rows, columns=columns)
