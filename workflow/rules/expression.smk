# What the cells themselves show: average effects and differential expression.


rule observe_effects:
    """observed effects and differential expression of a split"""
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        effects=f"{SPLIT}/observed_effects.h5ad",
    log:
        "results/logs/observe_effects/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/observe_effects/{experiment}/{split}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(has_counts, EXPERIMENTS)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(120),
    params:
        code=uses("observe_effects"),
    script:
        "../scripts/observe_effects.py"


rule tabulate_effects:
    """observed and predicted effects of every gene"""
    input:
        observed=lambda wildcards: f"{reference_split(wildcards.experiment)}/observed_effects.h5ad",
        predicted=lambda wildcards: files_of(
            wildcards.experiment, "predicted_effects.h5ad", reference=True
        ),
    output:
        table=f"{TABLES}/effects.parquet",
    log:
        "results/logs/tabulate_effects/{experiment}.log",
    benchmark:
        "results/benchmarks/tabulate_effects/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(20),
    params:
        runs=lambda wildcards: runs_of(wildcards.experiment, reference=True),
        code=uses("tabulate_effects"),
    script:
        "../scripts/tabulate_effects.py"


use rule collect_metrics as collect_de_comparison with:
    input:
        tables=splits_files("de_comparison.tsv"),
    output:
        table=f"{TABLES}/de_comparison.tsv",
    log:
        "results/logs/collect_tables/{experiment}/de_comparison.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/de_comparison.tsv"


rule stratify_scores:
    """scores by the strength of perturbations"""
    input:
        table=f"{TABLES}/de_comparison.tsv",
    output:
        table=f"{TABLES}/de_by_strength.tsv",
    log:
        "results/logs/stratify_scores/{experiment}.log",
    benchmark:
        "results/benchmarks/stratify_scores/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        code=uses("stratify_scores"),
    script:
        "../scripts/stratify_scores.py"


# of the first split and seed, like the table of effects; ceilings have no model of a combination
rule tabulate_combinations:
    """effects of combinations against the sum of their parts"""
    input:
        observed=lambda wildcards: f"{reference_split(wildcards.experiment)}/observed_effects.h5ad",
        predicted=lambda wildcards: files_of(
            wildcards.experiment,
            "predicted_effects.h5ad",
            reference=True,
            models=TRAINED + BASELINES,
        ),
    output:
        table=f"{TABLES}/combinations.tsv",
    log:
        "results/logs/tabulate_combinations/{experiment}.log",
    benchmark:
        "results/benchmarks/tabulate_combinations/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        runs=lambda wildcards: runs_of(
            wildcards.experiment, reference=True, models=TRAINED + BASELINES
        ),
        fdr=config["evaluation"]["fdr"],
        code=uses("tabulate_combinations"),
    script:
        "../scripts/tabulate_combinations.py"


# a checkpoint, since only a screen's cells tell which perturbations it has
checkpoint list_perturbations:
    """how many cells and changed genes each perturbation has"""
    input:
        observed=lambda wildcards: f"{reference_split(wildcards.experiment)}/observed_effects.h5ad",
    output:
        table=f"{TABLES}/perturbations.tsv",
    log:
        "results/logs/list_perturbations/{experiment}.log",
    benchmark:
        "results/benchmarks/list_perturbations/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        fdr=config["evaluation"]["fdr"],
        code=uses("list_perturbations"),
    script:
        "../scripts/list_perturbations.py"
