# What trained models and baselines predict, and how good it is.


rule estimate_iwelbo:
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
        model=f"{RUN}/model.safetensors",
    output:
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
    log:
        "results/logs/estimate_iwelbo/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/estimate_iwelbo/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(FITTED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
        gpu=1,
    params:
        particles=config["evaluation"]["iwelbo_particles"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("estimate_iwelbo"),
    script:
        "../scripts/estimate_iwelbo.py"


rule predict_effects:
    input:
        screen=screen_of,
        model=f"{RUN}/model.safetensors",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_effects/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_effects/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(has_counts, EXPERIMENTS)),
        model=one_of(TRAINED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=40),
        runtime=growing(60),
        gpu=1,
    params:
        draws=config["evaluation"]["effect_draws"],
        estimator=config["evaluation"]["effect_estimator"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("predict_effects"),
    script:
        "../scripts/predict_effects.py"


# no target asks for these cells; a user does, by the path
rule sample_cells:
    input:
        screen=screen_of,
        model=f"{RUN}/model.safetensors",
    output:
        cells=f"{RUN}/sampled_cells.h5ad",
    log:
        "results/logs/sample_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/sample_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(TRAINED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=40),
        runtime=growing(60),
        gpu=1,
    params:
        cells=config["evaluation"]["sampled_cells"],
        sample_from=config["evaluation"]["sample_from"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("sample_cells"),
    script:
        "../scripts/sample_cells.py"


# as the cells above, on request alone
rule export_cells:
    input:
        unpack(exported_input),
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


rule predict_baseline:
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_baseline/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_baseline/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(BASELINES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1000, per_input=40),
        runtime=growing(30),
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        code=uses("predict_baseline"),
    script:
        "../scripts/predict_baseline.py"


rule predict_ceiling:
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(CEILINGS),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1000, per_input=40),
        runtime=growing(30),
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses("predict_ceiling"),
    script:
        "../scripts/predict_ceiling.py"


rule evaluate_effects:
    input:
        observed=f"{SPLIT}/observed_effects.h5ad",
        predicted=lambda wildcards: files_of(
            wildcards.experiment, "predicted_effects.h5ad", split=wildcards.split
        ),
    output:
        metrics=f"{SPLIT}/metrics.tsv",
        de_comparison=f"{SPLIT}/de_comparison.tsv",
        perturbations=f"{SPLIT}/perturbation_metrics.parquet",
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
        runs=lambda wildcards: runs_of(wildcards.experiment, split=wildcards.split),
        top_genes=config["evaluation"]["top_genes"],
        fdr=config["evaluation"]["fdr"],
        code=uses("evaluate_effects"),
    script:
        "../scripts/evaluate_effects.py"


rule compare_iwelbo:
    input:
        iwelbo=lambda wildcards: files_of(
            wildcards.experiment, "iwelbo.parquet", models=TRAINED
        ),
        by_particles=lambda wildcards: files_of(
            wildcards.experiment, "iwelbo_by_particles.tsv", models=TRAINED
        ),
    output:
        table=f"{TABLES}/iwelbo.tsv",
        metrics=f"{TABLES}/iwelbo_metrics.tsv",
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
        runs=lambda wildcards: runs_of(wildcards.experiment, models=TRAINED),
        code=uses("compare_iwelbo"),
    script:
        "../scripts/compare_iwelbo.py"


rule recover_truth:
    input:
        unpack(recovery_input),
    output:
        metrics=f"{RUN}/truth.tsv",
        masks=f"{RUN}/matched_masks.tsv",
        recovery=f"{RUN}/recovery.tsv",
    log:
        "results/logs/recover_truth/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/recover_truth/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(is_simulated, EXPERIMENTS)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        run=run_of,
        code=uses_model("recover_truth"),
    script:
        "../scripts/recover_truth.py"


rule collect_metrics:
    input:
        tables=metric_tables,
    output:
        table=f"{TABLES}/metrics.tsv",
    log:
        "results/logs/collect_tables/{experiment}/metrics.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/metrics.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        code=uses("collect_tables"),
    script:
        "../scripts/collect_tables.py"


rule tidy_metrics:
    input:
        unpack(all_metrics),
    output:
        table=f"{TABLES}/metrics.parquet",
    log:
        "results/logs/tidy_metrics/{experiment}.log",
    benchmark:
        "results/benchmarks/tidy_metrics/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        top_genes=config["evaluation"]["top_genes"],
        code=uses("tidy_metrics"),
    script:
        "../scripts/tidy_metrics.py"


# which model is better, by how much and how surely
rule compare_models:
    input:
        unpack(comparison_input),
    output:
        intervals=f"{TABLES}/intervals.tsv",
        differences=f"{TABLES}/paired_differences.tsv",
        summary=f"{TABLES}/summary.tsv",
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
        models=lambda wildcards: EXPERIMENTS[wildcards.experiment]["models"],
        kinds=lambda wildcards: {
            name: MODEL_SETTINGS[name]["kind"]
            for name in EXPERIMENTS[wildcards.experiment]["models"]
        },
        splits=settings_of_splits,
        cells=single_run_of,
        settings={
            key: config["evaluation"][key]
            for key in ("top_genes", "correction", "significance")
        },
        code=uses("compare_models"),
    script:
        "../scripts/compare_models.py"
