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
    errors = inspection.errors
    suspicions = [finding for finding in inspection.findings if finding.severity != ERROR]
    lines += _section(errors, "Errors", "the screen cannot be used")
    lines += _section(suspicions, "Suspicions", "the screen can be used; look at these")
    return "\n".join(lines) + "\n"


def _section(findings: list[Finding], what: str, meaning: str) -> list[str]:
    if not findings:
        return [f"{what}: none"]
    lines = [f"{what}: {len(findings)} ({meaning})"]
    for number, finding in enumerate(findings, start=1):
        text = f"{number}. {finding.name}: {finding.message}"
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
        )
    return lines


def to_table(inspection: Inspection) -> pd.DataFrame:
    """List the findings: severity, name, message."""
    columns = ["severity", "name", "message"]
    rows = [[getattr(finding, column) for column in columns] for finding in inspection.findings]
    return pd.DataFrame(rows, columns=columns)
