# Metrics of models and predictions, and comparison of models.


rule evaluate_effects:
    """Score the predicted effects of all runs on a split."""
    input:
        observed=rules.observe_effects.output.effects,
        predicted=layout.for_runs(rules.evaluate_run.output.effects),
        halves=layout.halves_of(
            rules.predict_ceiling.output.effects, rules.halve_held_out.output.effects
        ),
    output:
        metrics=f"{SPLIT}/metrics.parquet",
        calibration=f"{SPLIT}/calibration.tsv",
        de_comparison=f"{SPLIT}/de_comparison.tsv",
        missed_effects=f"{SPLIT}/missed_effects.tsv",
        context_scores=f"{SPLIT}/context_scores.tsv",
    log:
        "results/logs/evaluate_effects/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/evaluate_effects/{experiment}/{split}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        runs=layout.runs_of(),
        top_genes=config["evaluation"]["top_genes"],
        fdr=config["evaluation"]["fdr"],
        effects=config["evaluation"]["effects"],
        code=uses("evaluate_effects"),
    script:
        "../scripts/evaluate_effects.py"


rule collect_scores:
    """Concatenate tables over the splits of an experiment, and stratify scores."""
    input:
        de_comparison=layout.for_splits(rules.evaluate_effects.output.de_comparison),
        missed_effects=layout.for_splits(rules.evaluate_effects.output.missed_effects),
        calibration=layout.for_splits(rules.evaluate_effects.output.calibration),
        de_by_strength=layout.for_splits(rules.evaluate_effects.output.de_comparison),
    output:
        de_comparison=f"{TABLES}/de_comparison.tsv",
        missed_effects=f"{TABLES}/missed_effects.tsv",
        calibration=f"{TABLES}/calibration.tsv",
        de_by_strength=f"{TABLES}/de_by_strength.tsv",
    log:
        "results/logs/collect_tables/{experiment}/scores.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/scores.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        **collecting(
            {
                "de_comparison": "samsvae.evaluation.differential_expression:with_quartiles",
                "de_by_strength": "samsvae.evaluation.differential_expression:scores_by_strength",
            }
        ),
    script:
        "../scripts/collect_tables.py"


use rule collect_scores as collect_context_scores with:
    input:
        context_scores=layout.for_splits(rules.evaluate_effects.output.context_scores),
    output:
        context_scores=f"{TABLES}/context_scores.tsv",
    log:
        "results/logs/collect_tables/{experiment}/context_scores.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/context_scores.tsv"
    params:
        **collecting(),


use rule collect_scores as collect_coverage with:
    input:
        coverage=layout.for_models(rules.predict_intervals.output.coverage),
    output:
        coverage=f"{TABLES}/coverage.tsv",
    log:
        "results/logs/collect_tables/{experiment}/coverage.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/coverage.tsv"
    params:
        **collecting({"coverage": "samsvae.evaluation.scores:with_mean_coverage"}),


rule score_cells:
    """Score the predicted cells of all runs against the held-out cells of a split."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
        models=layout.for_runs(rules.train.output.model, models=layout.trained),
        effects=layout.for_runs(
            rules.evaluate_run.output.effects,
            models=[*layout.baselines, *layout.external],
        ),
    output:
        vcc2026=f"{SPLIT}/vcc2026.tsv",
        population=f"{SPLIT}/population.tsv",
    log:
        "results/logs/score_cells/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/score_cells/{experiment}/{split}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments_with("cells")),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=10),
        runtime=growing(180),
        gpu=1,
    params:
        trained=layout.runs_of(models=layout.trained),
        baselines=layout.runs_of(models=[*layout.baselines, *layout.external]),
        ceilings=layout.runs_of(models=layout.ceilings),
        cells=config["evaluation"]["scored_cells"],
        effects=config["evaluation"]["effects"],
        min_controls=config["evaluation"]["min_controls_per_batch"],
        code=uses_models("score_cells"),
    script:
        "../scripts/score_cells.py"


use rule collect_scores as collect_cell_scores with:
    input:
        vcc2026=layout.for_splits(rules.score_cells.output.vcc2026),
        population=layout.for_splits(rules.score_cells.output.population),
    output:
        vcc2026=f"{TABLES}/vcc2026.tsv",
        population=f"{TABLES}/population.tsv",
    log:
        "results/logs/collect_tables/{experiment}/cell_scores.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/cell_scores.tsv"
    params:
        **collecting(
            {
                "vcc2026": "samsvae.evaluation.scores:with_mean_scaled",
                "population": "samsvae.evaluation.scores:with_means",
            }
        ),


rule compare_iwelbo:
    """Average the IWELBO of every run, compare models, and collect training histories."""
    input:
        iwelbo=layout.for_runs(rules.evaluate_run.output.iwelbo, models=layout.trained),
        by_particles=layout.for_runs(
            rules.evaluate_run.output.by_particles, models=layout.trained
        ),
        history=layout.for_runs(rules.train.output.history, models=layout.trained),
    output:
        table=f"{TABLES}/iwelbo.tsv",
        by_particles=f"{TABLES}/iwelbo_by_particles.tsv",
        training=f"{TABLES}/training.tsv",
    log:
        "results/logs/compare_iwelbo/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_iwelbo/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        runs=layout.runs_of(models=layout.trained),
        code=uses("compare_iwelbo"),
    script:
        "../scripts/compare_iwelbo.py"


rule recover_truth:
    """Score the recovery of the simulated truth by the runs of an experiment."""
    input:
        screen=layout.screen_of,
        predicted=branch(
            layout.true_effects_of,
            then=layout.for_runs(rules.evaluate_run.output.effects),
        ),
        models=layout.for_runs(rules.train.output.model, models=layout.trained),
        splits=layout.for_splits(rules.split_cells.output.split),
    output:
        metrics=f"{TABLES}/truth.tsv",
        masks=f"{TABLES}/matched_masks.tsv",
        recovery=f"{TABLES}/recovery.tsv",
    log:
        "results/logs/recover_truth/{experiment}.log",
    benchmark:
        "results/benchmarks/recover_truth/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.is_simulated, layout.experiments)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        runs=layout.runs_of(),
        trained=layout.runs_of(models=layout.trained),
        shown=layout.runs_of(models=layout.trained, reference=True),
        splits=lambda wildcards: list(layout.splits(wildcards.experiment)),
        code=uses_models("recover_truth"),
    script:
        "../scripts/recover_truth.py"


rule compare_models:
    """Collect all metrics in one tidy table, compare models by them, and rank models."""
    input:
        effects=branch(
            layout.has("counts"),
            then=layout.for_splits(rules.evaluate_effects.output.metrics),
        ),
        bounds=branch(layout.has("training"), then=rules.compare_iwelbo.output.table),
        truth=branch(layout.has("truth"), then=rules.recover_truth.output.metrics),
        calibration=branch(
            layout.has("counts"), then=rules.collect_scores.output.calibration
        ),
        iwelbo=layout.for_single_runs(rules.evaluate_run.output.iwelbo),
    output:
        metrics=f"{TABLES}/metrics.parquet",
        intervals=f"{TABLES}/intervals.tsv",
        differences=f"{TABLES}/paired_differences.tsv",
        summary=f"{TABLES}/summary.tsv",
        ranking=f"{TABLES}/ranking.tsv",
        verdict=f"{TABLES}/verdict.tsv",
    log:
        "results/logs/compare_models/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_models/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        models=lambda wildcards: layout.experiments[wildcards.experiment]["models"],
        kinds=lambda wildcards: {
            name: layout.models[name]["kind"]
            for name in layout.experiments[wildcards.experiment]["models"]
        },
        splits=layout.settings_of_splits,
        cells=layout.single_models_of,
        settings={
            key: config["evaluation"][key]
            for key in ("top_genes", "correction", "significance")
        },
        code=uses("compare_models", "samsvae.config.models"),
    script:
        "../scripts/compare_models.py"
