"""Figures and tables as the report's page takes them in."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from samsvae.chapters import Figure, Table
from samsvae.figures.captions import caption_as_html
from samsvae.files import read_table
from samsvae.wording import readable

SCREEN_SCALE = 1.75  # pixels per point of a figure made for print
MOST_ROWS = 1000
SIGNIFICANT_DIGITS = 4


def figure_entry(figure: Figure, experiment: Path, caption: Path, embedded: bool) -> dict[str, Any]:
    """Take a figure into the page.

    Parameters
    ----------
    figure
        Which one.
    experiment
        Folder of the experiment's results.
    caption
        Its caption's file.
    embedded
        Whether the drawing is part of the page, or a file beside it that the page names.
    """
    drawing = experiment / "figures" / f"{figure.name}.svg"
    svg = drawing.read_text(encoding="utf-8")
    nothing = re.search(r"<dc:coverage>(.*?)</dc:coverage>", svg, re.DOTALL)
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    beside = f"{experiment.name}/figures/{figure.name}"
    source = (
        f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        if embedded
        else f"{beside}.svg"
    )
    return {
        "kind": "figure",
        "name": figure.name,
        "width": round(SCREEN_SCALE * float(width.group(1))) if width else 700,
        "source": source,
        "alt": readable(figure.name),
        "nothing": html.unescape(nothing.group(1)) if nothing else "",
        "caption": Markup(caption_as_html(caption)),
        "files": [f"{beside}.svg", f"{beside}.pdf"],
    }


def table_entry(table: Table, experiment: Path) -> dict[str, Any]:
    """Take a table into the page, as JSON that its script lays out when a reader opens it.

    Parameters
    ----------
    table
        Which one; of a long one the first rows, see :class:`samsvae.chapters.Table`.
    experiment
        Folder of the experiment's results.
    """
    rows = read_table(experiment / "tables" / table.name)
    if table.first:
        column = table.first.removeprefix("-")
        rows = rows.sort_values(column, ascending=column == table.first, kind="stable")
    shown = rows.head(MOST_ROWS).dropna(axis="columns", how="all")
    return {
        "kind": "table",
        "name": Path(table.name).stem,
        "caption": table.caption,
        "number": len(rows),
        "left_out": len(rows) - len(shown),
        "file": f"{experiment.name}/tables/{table.name}",
        "data": as_json(shown),
    }


def as_json(table: pd.DataFrame) -> Markup:
    """Write a table as JSON that may stand inside an HTML element."""
    content = {"columns": list(table), "rows": [list(map(_plain, row)) for row in table.to_numpy()]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # "</script>" in a name would end the element
    return Markup(text.replace("<", "\\u003c"))


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and not np.isfinite(value)):
        return None
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{SIGNIFICANT_DIGITS}g}")
    return str(value)
