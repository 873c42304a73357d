# Observed effects, effects predicted by models and baselines, and predicted cells.


rule observe_effects:
    """Compute the observed effects and differential expression of a split."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
    output:
        effects=f"{SPLIT}/observed_effects.h5ad",
        by_use=f"{SPLIT}/observed_by_use.h5ad",
    log:
        "results/logs/observe_effects/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/observe_effects/{experiment}/{split}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(240),
    params:
        effects=config["evaluation"]["effects"],
        min_controls=config["evaluation"]["min_controls_per_batch"],
        fdr=config["evaluation"]["fdr"],
        code=uses("observe_effects"),
    script:
        "../scripts/observe_effects.py"


EVALUATED = {
    "particles": config["evaluation"]["iwelbo_particles"],
    "draws": config["evaluation"]["effect_draws"],
    "estimator": config["evaluation"]["effect_estimator"],
    "library_size": config["evaluation"]["effect_library_size"],
    "min_controls_per_batch": config["evaluation"]["min_controls_per_batch"],
}

# intervals are over all seeds of a model, so that the job of all seeds computes them, too
WITH_INTERVALS = config["evaluation"]["interval_draws"]


# The IWELBO and the effects of a run are one job, since loading the model takes longer than either
# for a small screen, and one job instead of two halves the plan of a large grid.
rule evaluate_run:
    """Estimate the IWELBO of held-out cells, and predict the effect of every perturbation."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
        model=rules.train.output.model,
    output:
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/evaluate_run/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/evaluate_run/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
        model=one_of(layout.fitted),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=1),
        runtime=growing(180),
        gpu=1,
    params:
        **EVALUATED,
        seeds=lambda wildcards: [int(wildcards.seed)],
        code=uses_model("evaluate_run"),
    script:
        "../scripts/evaluate_run.py"


# made by the job of all seeds of a model if there is one
rule predict_intervals:
    """Compute posterior intervals of the effects of a model over its training seeds."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
        observed=rules.observe_effects.output.by_use,
        model=layout.for_seeds(rules.train.output.model),
    output:
        intervals=f"{SPLIT}/{{model}}/intervals.h5ad",
        coverage=f"{SPLIT}/{{model}}/coverage.tsv",
    log:
        "results/logs/predict_intervals/{experiment}/{split}/{model}.log",
    benchmark:
        "results/benchmarks/predict_intervals/{experiment}/{split}/{model}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
        model=one_of(layout.trained),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=1),
        runtime=growing(180),
        gpu=1,
    params:
        seeds=lambda wildcards: layout.experiments[wildcards.experiment]["seeds"],
        interval_draws=config["evaluation"]["interval_draws"],
        library_size=config["evaluation"]["effect_library_size"],
        min_controls_per_batch=config["evaluation"]["min_controls_per_batch"],
        code=uses_model("evaluate_run"),
    script:
        "../scripts/evaluate_run.py"


# Seeds that are trained together are evaluated together; see train.smk. Candidates are evaluated
# seed by seed; those that an experiment lists have intervals by predict_intervals.
for number, (seeds, experiments) in enumerate(layout.by_seeds().items()):

    rule:
        """Estimate IWELBO and predict effects of all seeds of a model, with intervals."""
        name:
            f"evaluate_seeds_{number + 1}" if number else "evaluate_seeds"
        input:
            **(
                {"observed": rules.observe_effects.output.by_use}
                if WITH_INTERVALS
                else {}
            ),
            screen=layout.screen_of,
            split=rules.split_cells.output.split,
            model=expand(rules.train.output.model, seed=seeds, allow_missing=True),
        output:
            **(dict(rules.predict_intervals.output.items()) if WITH_INTERVALS else {}),
            iwelbo=expand(
                rules.evaluate_run.output.iwelbo, seed=seeds, allow_missing=True
            ),
            by_particles=expand(
                rules.evaluate_run.output.by_particles, seed=seeds, allow_missing=True
            ),
            effects=expand(
                rules.evaluate_run.output.effects, seed=seeds, allow_missing=True
            ),
        log:
            "results/logs/evaluate_seeds/{experiment}/{split}/{model}.log",
        benchmark:
            "results/benchmarks/evaluate_seeds/{experiment}/{split}/{model}.tsv"
        wildcard_constraints:
            model=one_of(
                model for model in layout.fitted_together if model in config["models"]
            ),
            experiment=one_of(filter(layout.has_counts, experiments)),
        conda:
            "../../envs/samsvae.yaml"
        threads: 1
        resources:
            mem_mb=growing(4000, per_input=1),
            runtime=growing(540),
            gpu=1,
        params:
            **EVALUATED,
            **({"interval_draws": WITH_INTERVALS} if WITH_INTERVALS else {}),
            seeds=list(seeds),
            code=uses_model("evaluate_run"),
        script:
            "../scripts/evaluate_run.py"

    workflow.ruleorder(
        f"evaluate_seeds_{number + 1}" if number else "evaluate_seeds",
        "evaluate_run",
        "predict_intervals",
    )


use rule evaluate_run as estimate_iwelbo with:
    output:
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
    log:
        "results/logs/estimate_iwelbo/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/estimate_iwelbo/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments_with(without="counts")),
        model=one_of(layout.fitted),


# One job predicts with the baselines of a split, since loading libraries and reading cells takes
# longer than most baselines. There is one rule for each list of baselines.
for number, (baselines, experiments) in enumerate(layout.by_baselines().items()):

    rule:
        """Predict effects with the baselines of an experiment."""
        name:
            f"predict_baselines_{number + 1}" if number else "predict_baselines"
        input:
            screen=layout.screen_of,
            split=rules.split_cells.output.split,
            features=layout.features_of_models(model for model, _ in baselines),
        output:
            effects=[
                expand(
                    rules.evaluate_run.output.effects,
                    model=model,
                    seed=seed,
                    allow_missing=True,
                )[0]
                for model, seed in baselines
            ],
        log:
            "results/logs/predict_baselines/{experiment}/{split}.log",
        benchmark:
            "results/benchmarks/predict_baselines/{experiment}/{split}.tsv"
        wildcard_constraints:
            experiment=one_of(experiments),
        conda:
            "../../envs/samsvae.yaml"
        resources:
            mem_mb=growing(2000, per_input=5),
            runtime=growing(60),
        params:
            settings=[layout.models[model] for model, _ in baselines],
            effects=config["evaluation"]["effects"],
            min_controls=config["evaluation"]["min_controls_per_batch"],
            code=uses("predict_baselines"),
        script:
            "../scripts/predict_baselines.py"


# first among the jobs that can run, so that a file that does not fit stops a run before training
rule predict_external:
    """Validate the predictions of another tool and bring them into the form of predicted effects."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
        file=layout.prediction_of,
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_external/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_external/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(layout.external),
    priority: 100
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(60),
    params:
        settings=lambda wildcards: layout.models[wildcards.model],
        content=layout.fingerprint_of_prediction,
        code=uses("predict_external"),
    script:
        "../scripts/predict_external.py"


rule predict_ceiling:
    """Compute effects among half of the held-out cells, as a ceiling."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(layout.ceilings),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(30),
    params:
        settings=lambda wildcards: layout.models[wildcards.model],
        effects=config["evaluation"]["effects"],
        min_controls=config["evaluation"]["min_controls_per_batch"],
        seeds=lambda wildcards: [int(wildcards.seed)],
        required=True,
        code=uses("predict_ceiling"),
    script:
        "../scripts/predict_ceiling.py"


# Several seeds are one job, which loads libraries and reads cells once.
for number, (seeds, experiments) in enumerate(layout.by_seeds(layout.ceilings).items()):

    rule:
        """Compute effects among half of the held-out cells, for all seeds."""
        name:
            f"predict_ceilings_{number + 1}" if number else "predict_ceilings"
        input:
            screen=layout.screen_of,
            split=rules.split_cells.output.split,
        output:
            effects=expand(
                rules.predict_ceiling.output.effects, seed=seeds, allow_missing=True
            ),
        log:
            "results/logs/predict_ceilings/{experiment}/{split}/{model}.log",
        benchmark:
            "results/benchmarks/predict_ceilings/{experiment}/{split}/{model}.tsv"
        wildcard_constraints:
            model=one_of(layout.ceilings),
            experiment=one_of(experiments),
        conda:
            "../../envs/samsvae.yaml"
        resources:
            mem_mb=growing(2000, per_input=5),
            runtime=growing(60),
        params:
            settings=lambda wildcards: layout.models[wildcards.model],
            effects=config["evaluation"]["effects"],
            min_controls=config["evaluation"]["min_controls_per_batch"],
            seeds=list(seeds),
            required=True,
            code=uses("predict_ceiling"),
        script:
            "../scripts/predict_ceiling.py"

    workflow.ruleorder(
        f"predict_ceilings_{number + 1}" if number else "predict_ceilings",
        "predict_ceiling",
    )


# made where no model of the experiment is the split-half ceiling
use rule predict_ceiling as halve_held_out with:
    output:
        effects=f"{SPLIT}/halves.h5ad",
    log:
        "results/logs/halve_held_out/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/halve_held_out/{experiment}/{split}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
    params:
        settings={},
        effects=config["evaluation"]["effects"],
        min_controls=config["evaluation"]["min_controls_per_batch"],
        seeds=[0],
        required=False,
        code=uses("predict_ceiling"),


# made only on request by path
rule sample_cells:
    """Sample cells from a trained model, as AnnData."""
    input:
        screen=layout.screen_of,
        model=rules.train.output.model,
    output:
        cells=f"{RUN}/sampled_cells.h5ad",
    log:
        "results/logs/sample_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/sample_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(layout.trained),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=1),
        runtime=growing(60),
        gpu=1,
    params:
        cells=config["evaluation"]["sampled_cells"],
        sample_from=config["evaluation"]["sample_from"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("sample_cells"),
    script:
        "../scripts/sample_cells.py"


# made only on request by path
rule export_cells:
    """Export cells of a model or baseline for cell-eval, as AnnData."""
    input:
        screen=layout.screen_of,
        split=rules.split_cells.output.split,
        model=branch(layout.trained_of, then=rules.train.output.model),
        effects=branch(layout.baseline_of, then=rules.evaluate_run.output.effects),
    output:
        predicted=f"{RUN}/cell_eval/predicted.h5ad",
        real=f"{RUN}/cell_eval/real.h5ad",
    log:
        "results/logs/export_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/export_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=20),
        runtime=growing(60),
        gpu=1,
    params:
        run=run_of,
        cells=config["evaluation"]["exported_cells"],
        code=uses_model("export_cells"),
    script:
        "../scripts/export_cells.py"
