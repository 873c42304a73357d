# Of a model with a grid, the candidate of the best bound on the validation cells of each split.


rule select_model:
    input:
        iwelbo=lambda wildcards: candidate_files(
            wildcards, "iwelbo.parquet", seeds_of(wildcards)
        ),
    output:
        table=f"{SPLIT}/{{model}}/selection.tsv",
    log:
        "results/logs/select_model/{experiment}/{split}/{model}.log",
    benchmark:
        "results/benchmarks/select_model/{experiment}/{split}/{model}.tsv"
    wildcard_constraints:
        model=one_of(CANDIDATES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        runs=lambda wildcards: [
            {"model": candidate, "seed": seed}
            for candidate in CANDIDATES[wildcards.model]
            for seed in seeds_of(wildcards)
        ],
        hyperparameters=lambda wildcards: CANDIDATES[wildcards.model],
        code=uses("select_model"),
    script:
        "../scripts/select_model.py"


# Copies, not links: a file as old as its training would seem older than what it was chosen by.
rule copy_selected:
    input:
        selection=f"{SPLIT}/{{model}}/selection.tsv",
        model=candidates_of_run("model.safetensors"),
        last_model=candidates_of_run("last_model.safetensors"),
        history=candidates_of_run("history.tsv"),
        iwelbo=candidates_of_run("iwelbo.parquet"),
        by_particles=candidates_of_run("iwelbo_by_particles.tsv"),
    output:
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
    log:
        "results/logs/copy_selected/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/copy_selected/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(CANDIDATES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        candidates=lambda wildcards: list(CANDIDATES[wildcards.model]),
        code=uses("copy_selected"),
    script:
        "../scripts/copy_selected.py"


rule tabulate_selection:
    input:
        tables=lambda wildcards: selection_tables(wildcards.experiment),
    output:
        selection=f"{TABLES}/selection.tsv",
        candidates=f"{TABLES}/candidates.tsv",
    log:
        "results/logs/tabulate_selection/{experiment}.log",
    benchmark:
        "results/benchmarks/tabulate_selection/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        splits=settings_of_splits,
        code=uses("tabulate_selection"),
    script:
        "../scripts/tabulate_selection.py"
