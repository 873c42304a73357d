"""The page: a story told stage by stage, that asks the network for nothing."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from samsvae.chapters import Figure
from samsvae.contents import STAGES, figures_of, stages_of
from samsvae.experiments import splits
from samsvae.files import read_table, whole_file, write_text
from samsvae.provenance import digest_of, versions
from samsvae.report.background import cells_in_words, competitors, describe, origins, run_times
from samsvae.report.biology import biology_in_words
from samsvae.report.entries import figure_entry, table_entry
from samsvae.report.findings import condition_tables, sentences
from samsvae.report.reproduction import reproduction_in_words
from samsvae.statistics.paired import CONFIDENCE
from samsvae.wording import readable

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
    """Write the report beside the experiments' folders, and what it says in short as plain text.

    Parameters
    ----------
    config
        The validated configuration.
    experiments
        What each experiment has, see :mod:`samsvae.contents`.
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
    introductions = [_introduction(config, name, results, has) for name, has in experiments.items()]
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(template).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    text = templates.get_template(Path(template).name).render(
        experiments=introductions,
        stages=_stages(experiments, {Path(one).stem: Path(one) for one in captions}, results),
        confidence=round(100 * CONFIDENCE),
        significance=config["evaluation"]["significance"],
        versions=versions(),
        origins=origins(config, results),
        run_times=run_times(results),
        config=yaml.safe_dump(dict(config), sort_keys=False),
        config_digest=digest_of(config),
    )
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_text("\n".join(map(_in_short, introductions)), findings)


def _introduction(
    config: Mapping[str, Any], name: str, results: Path, has: Collection[str]
) -> dict[str, Any]:
    """Say of an experiment what was run, and what came out in short."""
    experiment = config["experiments"][name]
    first = next(iter(splits(experiment)))
    n_top = int(config["evaluation"]["top_genes"])
    summary = read_table(results / name / "tables" / "summary.tsv")
    screen = results / "screens" / experiment["screen"] / "screen.h5ad"
    return {
        "name": name,
        "title": readable(name),
        "description": describe(config, name),
        "cells": cells_in_words(results / name / first / "split.tsv", screen),
        "competitors": [(readable(model), what) for model, what in competitors(config, name)],
        "findings": {
            "What the perturbations do.": biology_in_words(results / name / "tables", has),
            "Which model is best, and how surely.": sentences(summary, n_top),
            "Are the paper's results reproduced?": reproduction_in_words(
                results / name / "tables", has
            ),
        },
        "tables": condition_tables(summary, experiment["models"], n_top),
        "splits": list(splits(experiment)),
        "models": [(model, readable(model)) for model in experiment["models"]],
    }


def _in_short(introduction: Mapping[str, Any]) -> str:
    """Write what was run, and what came out, as lines for a terminal."""
    lines = [introduction["title"], ""]
    lines += textwrap.wrap(f"{introduction['cells']} {introduction['description']}", TERMINAL_WIDTH)
    for question, answers in introduction["findings"].items():
        if answers:
            lines += ["", question]
        for answer in answers:
            lines += textwrap.wrap(
                answer, TERMINAL_WIDTH, initial_indent="- ", subsequent_indent="  "
            )
    return "\n".join(lines) + "\n"


def _stages(
    experiments: Mapping[str, Collection[str]], captions: Mapping[str, Path], results: Path
) -> list[dict[str, Any]]:
    """Collect the figures and tables of every stage, experiment by experiment."""
    drawings = [
        results / name / "figures" / f"{figure.name}.svg"
        for name, properties in experiments.items()
        for figure in figures_of(properties)
    ]
    embedded = sum(drawing.stat().st_size for drawing in drawings) <= LARGEST_PAGE

    def entries(name: str, stage: str) -> list[dict[str, Any]]:
        return [
            figure_entry(entry, results / name, captions[entry.name], embedded)
            if isinstance(entry, Figure)
            else table_entry(entry, results / name)
            for kept in stages_of(experiments[name])
            if kept.name == stage
            for entry in kept.entries
        ]

    told = [
        {
            "name": stage.name,
            "title": stage.title,
            "lead": stage.lead,
            "parts": [
                {"experiment": name, "title": readable(name), "entries": found}
                for name in experiments
                if (found := entries(name, stage.name))
            ],
        }
        for stage in STAGES
    ]
    return [stage for stage in told if stage["parts"]]
