"""Assess the quality of a screen: effects of all cells, null, hits, knock-down, guides, batches."""

from typing import Any

import numpy as np
import pandas as pd

from samsvae.biology import guides, quality
from samsvae.evaluation.effects import effects_in_use, log_expression, write_effects
from samsvae.evaluation.stratified import Strata, strata_of_cells, stratified_effects
from samsvae.runtime.files import write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import digest_of_screen, perturbations, read_screen
from samsvae.screen.labels import CONTROL

SEED = 0


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings, output = dict(snakemake.params.settings), snakemake.output
    screen = read_screen(snakemake.input.screen)
    made_by = provenance(settings, snakemake.params.code, screen=digest_of_screen(screen))
    fewest, fdr = settings["min_controls_per_batch"], settings["fdr"]
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    expression = log_expression(screen)

    labels, names = screen.obs["perturbation"], perturbations(screen)
    by_batch = settings["effects"] != "plain"
    stratum = strata_of_cells(screen, by_batch, settings["depth_bins"])
    plain = Strata.of(labels, names)
    strata = Strata.of(labels, names, stratum, fewest) if stratum.any() else plain
    effects = quality.screen_effects(screen, expression, plain, strata, fdr, made_by)
    write_effects(effects, output.effects)

    is_control = (labels == CONTROL).to_numpy()
    null, quantiles = quality.null_calibration(
        expression[is_control],
        quality.fake_targets(screen, stratum, settings["min_cells_null"], SEED),
        stratum[is_control],
        library_size[is_control],
        fewest,
        fdr,
    )
    write_tsv(null, output.null)
    write_tsv(quantiles, output.quantiles)
    states = quality.principal_components(expression, SEED)
    hits = quality.hits(effects, states, expression, library_size, strata, fdr, SEED)
    write_tsv(hits, output.hits)
    write_tsv(quality.cells_by_batch(screen, fewest), output.batches)
    by_context = quality.effects_by_context(screen, expression, strata, fdr)
    write_tsv(by_context, output.contexts)

    of_guides, table = guides.guide_groups(screen, settings["min_cells_guide"])
    guide_strata = Strata(of_guides, stratum, len(table), strata.min_controls)
    rows = pd.DataFrame({"perturbation": effects.obs_names, "guide": ""})
    error = effects_in_use(effects, "standard_error")
    of_perturbations = guides.Groups(rows, strata, np.asarray(effects.X), error)
    by_guide = guides.Groups(table, guide_strata, *stratified_effects(expression, guide_strata))
    how = expression, screen.X, library_size, screen.var_names, settings["perturbation_kind"]
    pooled, single = (guides.knock_down(groups, *how) for groups in (of_perturbations, by_guide))
    found = [table for table in (pooled, single) if len(table)] or [pooled]
    write_tsv(pd.concat(found, ignore_index=True), output.knock_down)
    significant = pd.DataFrame(effects_in_use(effects, "fdr") < fdr, effects.obs_names)
    write_tsv(guides.compare_guides(table, by_guide.effect, single, significant), output.guides)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
