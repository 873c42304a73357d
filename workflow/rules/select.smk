# Of a model with a grid, the candidate of the best bound on the validation cells of each split.


# Every seed makes the same choice, by the bounds of all seeds. Copies, not links: a file as old as
# its training would seem older than what it was chosen by.
rule select_model:
    """the best of a grid of models, by validation cells"""
    input:
        iwelbo=layout.for_candidates(
            rules.estimate_iwelbo.output.iwelbo, all_seeds=True
        ),
        model=layout.for_candidates(rules.train.output.model),
        last_model=layout.for_candidates(rules.train.output.last_model),
        history=layout.for_candidates(rules.train.output.history),
        by_particles=layout.for_candidates(rules.estimate_iwelbo.output.by_particles),
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
        model=one_of(layout.candidates),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        candidates=lambda wildcards: layout.candidates[wildcards.model],
        seeds=layout.seeds_to_choose_by,
        code=uses("select_model"),
    script:
        "../scripts/select_model.py"


rule tabulate_selection:
    """what was tried in grids, and what was chosen"""
    input:
        tables=layout.for_choices(rules.select_model.output.selection),
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
        splits=layout.settings_of_splits,
        code=uses("tabulate_selection"),
    script:
        "../scripts/tabulate_selection.py"
