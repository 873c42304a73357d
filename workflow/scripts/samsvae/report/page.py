"""The report: one HTML page and an archive, with figures and tables inside."""

import base64
import html
import json
import re
import textwrap
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from samsvae.config.experiments import expanded, is_trained, splits
from samsvae.config.models import KINDS
from samsvae.config.screens import perturbation_kind
from samsvae.evaluation.comparison import CONFIDENCE
from samsvae.figures import caption_as_html, minus, readable
from samsvae.report.answers import five_answers
from samsvae.report.browser import browser_data, interactive_plots, plot_library
from samsvae.report.sections import (
    COUNTS,
    MARGINAL,
    REFERENCES,
    SECTIONS,
    TESTS,
    Figure,
    Table,
    figure_options,
    figures_of,
    sections_of,
)
from samsvae.report.sentences import (
    answers_of_sections,
    cells_in_words,
    competitors,
    describe,
    origins,
    run_times,
)
from samsvae.report.verdict import condition_tables
from samsvae.runtime.files import read_table, whole_file, write_text
from samsvae.runtime.provenance import digest_of, versions

SCREEN_SCALE = 1.75  # pixels per point of a figure made for print
MOST_ROWS = 1000
SIGNIFICANT_DIGITS = 4
OF_SEVERAL = " (in cells with several perturbations, its coefficient in a linear model)"
HEADLINE = "hits"  # figure of the first screen
# sections that describe noise where no perturbation has an effect
OF_EFFECTS = ("effects", "expression", "combinations", "pathways", "mechanisms")
NO_EFFECTS = (
    "No perturbation of this screen has a reproducible effect (see “Is the screen sound?”): what "
    "this section shows is noise."
)


def figure_entry(
    figure: Figure, experiment: Path, caption: Path, embedded: bool, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect a figure for the page.

    Parameters
    ----------
    figure
        Entry of the report.
    experiment
        Folder of the experiment's results.
    caption
        Its caption's file.
    embedded
        Whether the drawing is part of the page, or a file beside it that the page names.
    options
        Options of the figure, which its caption may name.
    """
    drawing = experiment / "figures" / f"{figure.name}.svg"
    svg = drawing.read_text(encoding="utf-8")
    nothing = re.search(r"<dc:coverage>(.*?)</dc:coverage>", svg, re.DOTALL)
    cells = CELLS.search(svg)
    beside = f"{experiment.name}/figures/{figure.name}"
    return {
        "kind": "figure",
        "name": figure.name,
        **_drawing(drawing, "" if embedded else f"{beside}.svg"),
        "alt": readable(figure.name),
        "nothing": html.unescape(nothing.group(1)) if nothing else "",
        "caption": Markup(caption_as_html(caption, options)),
        "cells": _embedded(json.loads(html.unescape(cells.group(1)))) if cells else "",
        "files": [f"{beside}.svg", f"{beside}.pdf"],
    }


# values under the cells of heat maps, which the page has once, as a text of its own
CELLS = re.compile(r"\s*<dc:relation>(.*?)</dc:relation>", re.DOTALL)


def _drawing(path: Path, source: str = "") -> dict[str, Any]:
    """Give the width of a drawing in pixels, and its source, embedded unless it is given."""
    svg = CELLS.sub("", path.read_text(encoding="utf-8"))
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    return {
        "width": round(SCREEN_SCALE * float(width.group(1))) if width else 700,
        "source": source or f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}",
    }


def table_entry(
    table: Table, experiment: Path, reference: str = REFERENCES[False]
) -> dict[str, Any]:
    """Collect a table for the page, as JSON that its script renders when a reader opens it.

    Parameters
    ----------
    table
        Entry of the report; only the first rows of a long table, see
        :class:`samsvae.report.sections.Table`.
    experiment
        Folder of the experiment's results.
    reference
        Cells that perturbations are compared with, which captions name.
    """
    rows = read_table(experiment / "tables" / table.name)
    if table.first:
        column = table.first.removeprefix("-")
        rows = rows.sort_values(column, ascending=column == table.first, kind="stable")
    rows = rows[[name for name in rows if not any(fnmatch(name, of) for of in table.file_only)]]
    shown = rows.head(MOST_ROWS).dropna(axis="columns", how="all")
    constant = _constant(rows[shown.columns])
    return {
        "kind": "table",
        "name": Path(table.name).stem,
        "title": readable(Path(table.name).stem),
        "caption": table.caption.format(reference=reference),
        "number": len(rows),
        "left_out": len(rows) - len(shown),
        "constant": "; ".join(f"{readable(name)} {text}" for name, text in constant.items()),
        "file": f"{experiment.name}/tables/{table.name}",
        "data": as_json(shown.drop(columns=list(constant)), " ".join(constant.values())),
    }


def _constant(rows: pd.DataFrame) -> dict[str, str]:
    """Find the columns that are the same in all of several rows, and what they say there."""
    if len(rows) < 2:
        return {}
    first = {name: rows[name].iloc[0] for name in rows}
    same = [name for name in rows if (rows[name] == first[name]).all()]
    if len(same) == rows.shape[1]:  # equal rows
        return {}
    values = {name: _plain(first[name]) for name in same}
    return {
        name: minus(f"{value:g}") if isinstance(value, float) else str(value)
        for name, value in values.items()
    }


def has_content(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of the page shows anything."""
    return not entry["nothing"] if entry["kind"] == "figure" else bool(entry["number"])


def as_json(table: pd.DataFrame, constant: str = "") -> Markup:
    """Write a table as JSON that may stand inside an HTML element.

    A search also finds what is constant, and not among the columns.
    """
    columns = [list(map(_plain, table[name].tolist())) for name in table]
    rows = list(map(list, zip(*columns, strict=True)))
    return _embedded({"columns": list(table), "rows": rows, "constant": constant})


def _embedded(content: Any) -> Markup:
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


TERMINAL_WIDTH = 100
LARGEST_PAGE = 30_000_000  # bytes of drawings; beyond that they stay files beside the page


def write_report(
    config: Mapping[str, Any],
    experiments: Mapping[str, Collection[str]],
    captions: Sequence[str | Path],
    template: str | Path,
    path: str | Path,
    findings: str | Path,
) -> None:
    """Write the report beside the experiments' folders, and its summary as plain text.

    Parameters
    ----------
    config
        The validated configuration.
    experiments
        Properties of each experiment, see :mod:`samsvae.report.sections`.
    captions
        The figures' captions, reStructuredText in files named like the figures.
    template
        Jinja template of the page; its style and its script are beside it.
    path
        The page to write; the experiments' folders are beside it.
    findings
        The text to write.
    """
    results = Path(path).parent
    drawings = [
        results / name / "figures" / f"{figure.name}.svg"
        for name, properties in experiments.items()
        for figure in figures_of(properties)
    ]
    embedded = sum(drawing.stat().st_size for drawing in drawings) <= LARGEST_PAGE
    introductions = [
        _introduction(config, name, results, has, embedded) for name, has in experiments.items()
    ]
    said = {name: _said(config, name, results, has) for name, has in experiments.items()}
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(template).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    browsers = {
        name: _embedded(data)
        for name, has in experiments.items()
        if (data := _browser(config, name, results, has))
    }
    screens = dict.fromkeys(config["experiments"][name]["screen"] for name in experiments)
    text = templates.get_template(Path(template).name).render(
        screens=f"screen{'s' * (len(screens) > 1)} {', '.join(map(readable, screens))}",
        browsers=browsers,
        plots=Markup(interactive_plots()) if browsers else "",
        plot_library=Markup(plot_library()) if browsers else "",
        experiments=introductions,
        sections=_sections(
            config,
            experiments,
            said,
            {Path(one).stem: Path(one) for one in captions},
            results,
            embedded,
        ),
        confidence=round(100 * CONFIDENCE),
        significance=config["evaluation"]["significance"],
        versions=versions(),
        origins=origins(config, results),
        run_times=run_times(results, [*experiments, *screens]),
        config=yaml.safe_dump(dict(config), sort_keys=False),
        config_digest=digest_of(config),
    )
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    texts = [_in_short(one, said[one["name"]]) for one in introductions]
    write_text("\n".join(texts), findings)


def _browser(
    config: Mapping[str, Any], name: str, results: Path, has: Collection[str]
) -> dict[str, Any] | None:
    """Collect the data of an experiment's browser; the first trained model predicts, if any."""
    models = expanded(config["models"])
    of_experiment = config["experiments"][name]["models"]
    trained = [model for model in of_experiment if is_trained(models[model])]
    first = [*trained, *of_experiment][0]
    return browser_data(results / name, has, first, config["evaluation"]["fdr"])


def _introduction(
    config: Mapping[str, Any], name: str, results: Path, has: Collection[str], embedded: bool
) -> dict[str, Any]:
    """Describe an experiment and its main results."""
    headline = f"figures/{HEADLINE}.svg"
    beside = "" if embedded else f"{name}/{headline}"
    experiment = config["experiments"][name]
    first = next(iter(splits(experiment)))
    screen = results / "screens" / experiment["screen"] / "screen.h5ad"
    tables = results / name / "tables"
    kind = perturbation_kind(config["screens"][experiment["screen"]])
    fdr = config["evaluation"]["fdr"]
    models = expanded(config["models"])
    trained = [name for name in experiment["models"] if is_trained(models[name])]
    return {
        "name": name,
        "title": readable(name),
        "description": describe(config, name),
        "cells": cells_in_words(results / name / first / "split.tsv", screen, has),
        "competitors": [(readable(model), what) for model, what in competitors(config, name)],
        "answers": five_answers(
            tables, has, kind, fdr, experiment["models"], trained, experiment["split"]["kind"]
        ),
        "headline": _drawing(results / name / headline, beside) if COUNTS in has else {},
        "splits": list(splits(experiment)),
        "models": [(model, readable(model)) for model in experiment["models"]],
    }


def _in_short(introduction: Mapping[str, Any], said: Mapping[str, Sequence[str]]) -> str:
    """Write the description, the five answers and the comparison of models for a terminal."""
    lines = [introduction["title"], ""]
    lines += textwrap.wrap(f"{introduction['cells']} {introduction['description']}", TERMINAL_WIDTH)
    compared = [text for section in ("effects", "models", "truth") for text in said[section]]
    for question, answers in [*introduction["answers"], ("Comparison of models", compared)]:
        if answers:
            lines += ["", question]
        for answer in answers:
            lines += textwrap.wrap(
                answer, TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  "
            )
    return "\n".join(lines) + "\n"


def _said(
    config: Mapping[str, Any], name: str, results: Path, has: Collection[str]
) -> dict[str, list[str]]:
    """Answer the question of each section for an experiment."""
    experiment = config["experiments"][name]
    models = expanded(config["models"])
    evaluation = config["evaluation"]
    return answers_of_sections(
        results / name / "tables",
        has,
        perturbation_kind(config["screens"][experiment["screen"]]),
        evaluation["fdr"],
        int(evaluation["top_genes"]),
        [model for model in experiment["models"] if KINDS[models[model]["kind"]].has_masks],
    )


def _sections(
    config: Mapping[str, Any],
    experiments: Mapping[str, Collection[str]],
    said: Mapping[str, Mapping[str, Sequence[str]]],
    captions: Mapping[str, Path],
    results: Path,
    embedded: bool,
) -> list[dict[str, Any]]:
    """Collect the answers, figures and tables of every section, experiment by experiment."""
    empty = {
        name
        for name, properties in experiments.items()
        if COUNTS in properties
        and not read_table(results / name / "tables" / "hits.tsv")["is_hit"].any()
    }

    def entries(name: str, section: str) -> list[dict[str, Any]]:
        options = figure_options(config, name, experiments[name])
        return [
            figure_entry(entry, results / name, captions[entry.name], embedded, options)
            if isinstance(entry, Figure)
            else table_entry(entry, results / name, options["reference"])
            for kept in sections_of(experiments[name])
            if kept.name == section
            for entry in kept.entries
        ]

    def scores(name: str) -> list[dict[str, Any]]:
        return condition_tables(
            read_table(results / name / "tables" / "summary.tsv"),
            config["experiments"][name]["models"],
            int(config["evaluation"]["top_genes"]),
        )

    kinds = sorted({MARGINAL in properties for properties in experiments.values()})
    sections = [
        {
            "name": section.name,
            "title": section.title,
            "lead": section.lead.format(
                reference=" or ".join(REFERENCES[marginal] for marginal in kinds),
                test=" or ".join(TESTS[marginal] for marginal in kinds),
                marginal=OF_SEVERAL if True in kinds else "",
            ),
            "parts": [
                {
                    "experiment": name,
                    "title": readable(name),
                    "answers": said[name].get(section.name, []),
                    "scores": scores(name) if section.name == "effects" else [],
                    "entries": found,
                    "warning": NO_EFFECTS if section.name in OF_EFFECTS and name in empty else "",
                }
                for name in experiments
                if any(map(has_content, found := entries(name, section.name)))
            ],
        }
        for section in SECTIONS
    ]
    return [section for section in sections if section["parts"]]


EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same files give the same archive


def write_archive(
    experiments: Mapping[str, Collection[str]], page: str | Path, path: str | Path
) -> None:
    """Pack the page with the figures, as SVG and PDF, and the tables that it shows.

    Parameters
    ----------
    experiments
        Properties of each experiment, see :mod:`samsvae.report.sections`.
    page
        The report; the experiments' folders are beside it.
    path
        The archive. Names in it are relative to the page, so that its links hold.
    """
    results = Path(page).parent
    files = [Path(page), *_shown(experiments, results)]
    with (
        whole_file(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in files:
            entry = zipfile.ZipInfo(str(Path("report") / file.relative_to(results)), EARLIEST)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, file.read_bytes())


def _shown(experiments: Mapping[str, Collection[str]], results: Path) -> Iterator[Path]:
    for experiment, properties in experiments.items():
        for section in sections_of(properties):
            for entry in section.entries:
                if isinstance(entry, Table):
                    yield results / experiment / "tables" / entry.name
                else:
                    drawing = results / experiment / "figures" / entry.name
                    yield from (drawing.with_suffix(suffix) for suffix in (".svg", ".pdf"))
