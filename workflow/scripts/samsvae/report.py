"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docutils.core
import jinja2
import numpy as np
import pandas as pd
import yaml
from markupsafe import Markup

from samsvae.experiments import is_ceiling
from samsvae.files import read_table, whole_file
from samsvae.provenance import digest_of, versions
from samsvae.wording import readable

UNDEFINED = "–"
SCREEN_SCALE = 1.75  # pixels per point of a figure made for print


def write_report(
    config: Mapping[str, Any],
    experiments: Mapping[str, Mapping[str, Any]],
    captions: Sequence[str | Path],
    template: str | Path,
    path: str | Path,
) -> None:
    """Write the report beside the experiments' folders.

    Parameters
    ----------
    config
        The validated configuration.
    experiments
        For each experiment the names of its ``figures`` and whether it is ``simulated``.
    captions
        The figures' captions, reStructuredText in files named like the figures.
    template
        Jinja template of the page.
    path
        The file to write; the experiments' folders are beside it.
    """
    results = Path(path).parent
    caption_of = {Path(caption).stem: Path(caption) for caption in captions}
    sections = [
        {
            "name": name,
            "description": describe(config, name),
            "summary": summarise(metrics, config, name),
            "table": model_table(
                metrics, config["experiments"][name]["models"], n_top(config), ceilings(config)
            ),
            "figures": [
                figure(results / name / "figures" / f"{one}.svg", caption_of[one])
                for one in shown["figures"]
            ],
        }
        for name, shown in experiments.items()
        for metrics in [read_table(results / name / "tables" / "metrics.tsv")]
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    text = page.from_string(Path(template).read_text(encoding="utf-8")).render(
        experiments=sections,
        any_spread=any("±" in str(section["table"]) for section in sections),
        versions=versions(),
        config=yaml.safe_dump(dict(config), sort_keys=False),
        config_digest=digest_of(config),
    )
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def n_top(config: Mapping[str, Any]) -> int:
    """Genes per perturbation in the top-gene metrics."""
    return int(config["evaluation"]["top_genes"])


def ceilings(config: Mapping[str, Any]) -> list[str]:
    """Name the models that are measurements themselves, and so no rivals of the others."""
    return [name for name, model in config["models"].items() if is_ceiling(model)]


def describe(config: Mapping[str, Any], name: str) -> str:
    """Say in words what an experiment is."""
    experiment = config["experiments"][name]
    split = experiment["split"]
    kinds = {
        "random": "64 % of cells train, 16 % validate and 20 % test the models",
        "unseen_combinations": "a quarter of the combinations tests models that were trained on a "
        "fraction of all combinations, which up to 0.75 holds none of the tested ones",
        "as_simulated": "each part has the cells that the simulator made for it",
        "data_efficiency": "only a fraction of the combinations' training cells is used",
    }
    fractions = split.get("fractions")
    share = f" (fractions {', '.join(f'{f:g}' for f in fractions)})" if fractions else ""
    return (
        f"Screen “{experiment['screen']}” ({config['screens'][experiment['screen']]['source']}); "
        f"{kinds[split['kind']]}{share}. Split seeds: {', '.join(map(str, split['seeds']))}; "
        f"training seeds: {', '.join(map(str, experiment['seeds']))}; "
        f"up to {config['training']['max_steps']:,} training steps."
    )


def summarise(metrics: pd.DataFrame, config: Mapping[str, Any], name: str) -> list[str]:
    """Say in sentences what an experiment found."""
    everything = config["experiments"][name]["models"]
    models = [model for model in everything if model not in ceilings(config)]
    scope = best_scope(metrics)
    found = []
    correlation = mean_by_model(metrics, scope, "pearson_held_out", models)
    if correlation.notna().any():
        best = correlation.idxmax()
        others = [
            f"{readable(model)} {value:.2f}"
            for model, value in correlation.drop(best).dropna().items()
        ]
        found.append(
            f"Predicted effects agree best with those observed among held-out cells for "
            f"{readable(best)}: Pearson r = {correlation[best]:.2f} over all genes and the "
            f"perturbations{' with test cells' if scope == 'test' else ''}"
            + (f" (others: {', '.join(others)})." if others else ".")
        )
    for ceiling in (model for model in everything if model not in models):
        reached = mean_by_model(metrics, scope, "pearson_held_out", [ceiling])[ceiling]
        found.append(
            f"Half of these cells predict the other half ({readable(ceiling)}) with "
            f"r = {reached:.2f}."
        )
    f1 = mean_by_model(metrics, "truth", "mask_f1", models).dropna()
    effect = mean_by_model(metrics, "truth", "effect_pearson", models).dropna()
    if len(effect):
        best = effect.idxmax()
        found.append(
            f"Against the simulation's noise-free effects, {readable(best)} reaches "
            f"r = {effect[best]:.2f}."
        )
    if len(f1):
        precision = mean_by_model(metrics, "truth", "mask_precision", models)
        recall = mean_by_model(metrics, "truth", "mask_recall", models)
        recovered = [
            f"{readable(model)} with F1 = {value:.2f} (precision {precision[model]:.2f}, "
            f"recall {recall[model]:.2f})"
            for model, value in f1.items()
        ]
        found.append(f"Which target moves which factor is recovered by {'; '.join(recovered)}.")
    return found


def best_scope(metrics: pd.DataFrame) -> str:
    """Choose the scope to report: perturbations with test cells, or all if there are none."""
    return (
        "test" if ((metrics["scope"] == "test") & (metrics["metric"] == "pearson")).any() else "all"
    )


def mean_by_model(
    metrics: pd.DataFrame, scope: str, metric: str, models: Sequence[str]
) -> "pd.Series[float]":
    """Average a metric over runs, by model; NaN where undefined."""
    chosen = metrics[(metrics["scope"] == scope) & (metrics["metric"] == metric)]
    return chosen.groupby("model")["value"].mean().reindex(models)


def model_table(
    metrics: pd.DataFrame, models: Sequence[str], top: int, unrivalled: Sequence[str] = ()
) -> dict[str, Any]:
    """Lay out the main metrics, a row per model.

    Parameters
    ----------
    metrics
        The table metrics.tsv.
    models
        Rows.
    top
        Genes per perturbation in the top-gene metrics.
    unrivalled
        Models that are shown but never called the best.

    Returns
    -------
    dict
        ``columns``: headings; ``rows``: lists of cells with ``text`` and ``best``.
    """
    scope = best_scope(metrics)
    wanted = {
        "r, held-out cells": (scope, "pearson_held_out"),
        f"r, held-out cells, top {top} genes": (scope, f"pearson_top{top}_held_out"),
        "r, all cells": (scope, "pearson"),
        f"r, all cells, top {top} genes": (scope, f"pearson_top{top}"),
        "IWELBO, test cells (nats)": ("test", "iwelbo"),
        "r with true effects": ("truth", "effect_pearson"),
        "mask F1": ("truth", "mask_f1"),
    }
    columns, cells = (
        ["model"],
        {model: [{"text": readable(model), "best": False}] for model in models},
    )
    for heading, (where, metric) in wanted.items():
        values = metrics[(metrics["scope"] == where) & (metrics["metric"] == metric)]
        if values["value"].notna().sum() == 0:
            continue
        columns.append(heading)
        mean = values.groupby("model")["value"].mean().reindex(models)
        spread = values.groupby("model")["value"].std().reindex(models)
        digits = 1 if metric == "iwelbo" else 3
        rivals = mean.drop([model for model in unrivalled if model in models])
        best = rivals.max() if len(rivals) > 1 else float("nan")
        for model in models:
            cells[model].append(
                {
                    "text": with_spread(mean[model], spread[model], digits),
                    "best": model in rivals and bool(np.isclose(mean[model], best)),
                }
            )
    return {"columns": columns, "rows": list(cells.values())}


def with_spread(mean: float, spread: float, digits: int) -> str:
    """Write a mean, with its standard deviation if there is one."""
    if np.isnan(mean):
        return UNDEFINED
    text = f"{mean:.{digits}f}"
    return text if np.isnan(spread) or spread == 0 else f"{text} ± {spread:.{digits}f}"


def figure(drawing: Path, caption: Path) -> dict[str, Any]:
    """Take a figure and its caption into the page."""
    body = docutils.core.publish_parts(
        caption.read_text(encoding="utf-8"),
        writer="html5",
        settings_overrides={"raw_enabled": False},
    )["body"]
    svg = drawing.read_text(encoding="utf-8")
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    return {
        "name": drawing.stem,
        "width": round(SCREEN_SCALE * float(width.group(1))) if width else 700,
        "data": base64.b64encode(svg.encode()).decode(),
        "alt": readable(drawing.stem),
        "caption": Markup(body),
    }
