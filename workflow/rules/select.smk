# Of a model with a grid, the candidate of the best bound on the validation cells of each split.


# Every seed makes the same choice, by the bounds of all seeds. Copies, not links: a file as old as
# its training would seem older than what it was chosen by.
rule select_model:
    """the best of a grid of models, by validation cells"""
    input:
        iwelbo=lambda wildcards: candidate_files(
            wildcards, "iwelbo.parquet", seeds_to_choose_by(wildcards)
        ),
        model=candidates_of_run("model.safetensors"),
        last_model=candidates_of_run("last_model.safetensors"),
        history=candidates_of_run("history.tsv"),
        by_particles=candidates_of_run("iwelbo_by_particles.tsv"),
    output:
        selection=f"{RUN}/selection.tsv",
        iwelbo=f"{RUN}/iwelbo.parquet",
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
    log:
        "results/logs/select_model/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/select_model/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(CANDIDATES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        candidates=lambda wildcards: CANDIDATES[wildcards.model],
        seeds=seeds_to_choose_by,
        code=uses("select_model"),
    script:
        "../scripts/select_model.py"


rule tabulate_selection:
    """what was tried in grids, and what was chosen"""
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
