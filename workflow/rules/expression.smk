# What the cells themselves show: average effects and differential expression.


rule observe_effects:
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
        mem_mb=growing(1000, per_input=20),
        runtime=growing(120),
    params:
        code=uses("observe_effects"),
    script:
        "../scripts/observe_effects.py"


rule tabulate_effects:
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
