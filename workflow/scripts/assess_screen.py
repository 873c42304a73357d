"""Assess the quality of a screen: effects of all cells, null, hits, knock-down, guides, batches."""

from collections.abc import Mapping
from typing import Any

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

from samsvae.biology import BATCH_PVALUE, BATCH_VARIANCE, calibration, guides, many_guides, quality
from samsvae.evaluation.effects import effects_in_use, write_effects
from samsvae.evaluation.expression import Expression, log_expression
from samsvae.evaluation.marginal import Regression, fit
from samsvae.evaluation.strata import Strata, strata_of_cells, stratified_effects
from samsvae.runtime.files import write_tsv
from samsvae.runtime.provenance import provenance
from samsvae.runtime.script import run_job
from samsvae.screen.canonical import (
    BATCH,
    CONTEXT,
    digest_of_screen,
    has_marginal_effects,
    open_screen,
    perturbations,
)
from samsvae.screen.labels import CONTROL

SEED = 0
Tables = dict[str, pd.DataFrame]


def main(snakemake: Any) -> None:
    """Run the rule."""
    settings, output = dict(snakemake.params.settings), snakemake.output
    with open_screen(snakemake.input.screen) as screen:
        made_by = provenance(settings, snakemake.params.code, screen=digest_of_screen(screen))
        if has_marginal_effects(screen):
            effects, tables = assess_perturbations(screen.to_memory(), settings, made_by)
        else:
            effects, tables = assess_conditions(screen, settings, made_by)
    write_effects(effects, output.effects)
    for name, table in tables.items():
        write_tsv(table, output[name])


def assess_conditions(
    screen: anndata.AnnData, settings: Mapping[str, Any], made_by: str
) -> tuple[anndata.AnnData, Tables]:
    """Compare the cells of each condition with control cells."""
    expression = Expression(screen)
    fewest, fdr = settings["min_controls_per_batch"], settings["fdr"]
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    labels, names = screen.obs["perturbation"], perturbations(screen)
    by_batch = settings["effects"] != "plain"
    stratum = strata_of_cells(screen, by_batch, settings["depth_bins"])
    plain = Strata.of(labels, names)
    strata = Strata.of(labels, names, stratum, fewest) if stratum.any() else plain
    effects = quality.screen_effects(screen, expression, plain, strata, fdr, made_by)

    is_control = (labels == CONTROL).to_numpy()
    controls = log_expression(screen, is_control)
    add_batch_effects(effects, controls, screen.obs[is_control])
    null, quantiles = calibration.null_calibration(
        controls,
        calibration.fake_targets(screen, stratum, settings["min_cells_null"], SEED),
        stratum[is_control],
        library_size[is_control],
        fewest,
        fdr,
    )
    states = quality.principal_components(expression, SEED)
    of_guides, table = guides.guide_groups(screen, settings["min_cells_guide"])
    guide_strata = Strata(of_guides, stratum, len(table), strata.min_controls)
    rows = pd.DataFrame({"perturbation": effects.obs_names, "guide": ""})
    error = effects_in_use(effects, "standard_error")
    of_perturbations = guides.Groups(rows, strata, np.asarray(effects.X), error)
    by_guide = guides.Groups(table, guide_strata, *stratified_effects(expression, guide_strata))
    how = expression, screen.var_names, settings["perturbation_kind"]
    pooled, single = (guides.knock_down(groups, *how) for groups in (of_perturbations, by_guide))
    significant = pd.DataFrame(effects_in_use(effects, "fdr") < fdr, effects.obs_names)
    return effects, {
        "null": null,
        "quantiles": quantiles,
        "hits": quality.hits(effects, states, expression, strata, fdr, SEED),
        "batches": quality.cells_by_batch(screen, fewest),
        "contexts": quality.effects_by_context(screen, expression, strata, fdr),
        "knock_down": joined(pooled, single),
        "guides": guides.compare_guides(table, by_guide.effect, single, significant),
    }


def assess_perturbations(
    screen: anndata.AnnData, settings: Mapping[str, Any], made_by: str
) -> tuple[anndata.AnnData, Tables]:
    """Compare the cells with each perturbation with all others, by marginal effects."""
    expression = log_expression(screen)
    fdr, kind = settings["fdr"], settings["perturbation_kind"]
    by_batch = settings["effects"] != "plain"
    library_size = screen.obs["library_size"].to_numpy(dtype=np.float64)
    cells = Regression.of(screen, by_batch)
    effects = many_guides.marginal_screen_effects(screen, expression, by_batch, fdr, made_by)
    is_control = (screen.obs["perturbation"] == CONTROL).to_numpy()
    add_batch_effects(effects, expression[is_control], screen.obs[is_control])
    null, quantiles = many_guides.marginal_null(screen, expression, cells, settings, SEED)
    states = quality.principal_components(Expression(screen), SEED)
    rows = pd.DataFrame({"perturbation": effects.obs_names, "guide": ""})
    error = effects_in_use(effects, "standard_error")
    own = np.asarray(effects.X)
    pooled = many_guides.marginal_knock_down(rows, cells, own, error, screen, expression, kind)
    table, of_guides = many_guides.cells_of_guides(screen, cells, settings["min_cells_guide"])
    by_guide = fit(expression, of_guides)
    errors = by_guide.effect, by_guide.standard_error
    single = many_guides.marginal_knock_down(table, of_guides, *errors, screen, expression, kind)
    significant = pd.DataFrame(effects_in_use(effects, "fdr") < fdr, effects.obs_names)
    how = states, expression, screen.X, library_size, cells, fdr, SEED
    return effects, {
        "null": null,
        "quantiles": quantiles,
        "hits": many_guides.marginal_hits(effects, *how),
        "batches": many_guides.cells_in_batches(screen, cells, settings["min_controls_per_batch"]),
        "contexts": many_guides.marginal_effects_by_context(screen, expression, cells, fdr),
        "knock_down": joined(pooled, single),
        "guides": guides.compare_guides(table, by_guide.effect, single, significant),
    }


def add_batch_effects(
    effects: anndata.AnnData, controls: sparse.csr_matrix, obs: pd.DataFrame
) -> None:
    """Add the comparison of batches by their control cells to the genes of a table of effects."""
    if BATCH in obs:
        batch = obs[BATCH].astype(str).to_numpy()
        context = obs[CONTEXT].astype(str).to_numpy() if CONTEXT in obs else np.zeros(len(obs))
        pvalue, variance = quality.batch_effects(controls, batch, context)
        effects.var[BATCH_PVALUE] = pvalue
        effects.var[BATCH_VARIANCE] = variance


def joined(pooled: pd.DataFrame, single: pd.DataFrame) -> pd.DataFrame:
    """Concatenate the changes of targets of perturbations and of guides."""
    found = [table for table in (pooled, single) if len(table)] or [pooled]
    return pd.concat(found, ignore_index=True)


if __name__ == "__main__":
    run_job(main, globals().get("snakemake"))
