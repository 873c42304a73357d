"""The report: one HTML file that holds everything it shows and asks the network for nothing."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docutils.core
import jinja2
import yaml
from markupsafe import Markup

from samsvae.files import read_table, whole_file
from samsvae.findings import condition_tables, sentences
from samsvae.provenance import digest_of, versions
from samsvae.statistics.paired import CONFIDENCE
from samsvae.wording import readable

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
            "summary": sentences(summary, n_top(config)),
            "tables": condition_tables(
                summary, config["experiments"][name]["models"], n_top(config)
            ),
            "figures": [
                figure(results / name / "figures" / f"{one}.svg", caption_of[one])
                for one in shown["figures"]
            ],
        }
        for name, shown in experiments.items()
        for summary in [read_table(results / name / "tables" / "summary.tsv")]
    ]
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    text = page.from_string(Path(template).read_text(encoding="utf-8")).render(
        experiments=sections,
        confidence=round(100 * CONFIDENCE),
        significance=config["evaluation"]["significance"],
        versions=versions(),
        config=yaml.safe_dump(dict(config), sort_keys=False),
        config_digest=digest_of(config),
    )
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def n_top(config: Mapping[str, Any]) -> int:
    """Genes per perturbation in the top-gene metrics."""
    return int(config["evaluation"]["top_genes"])


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
