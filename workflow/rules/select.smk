# Selection of hyperparameters: the candidate with the highest validation IWELBO on each split.


# All seeds share the selected candidate, by the IWELBO averaged over seeds. Outputs are copies, not
# links, since a link would have the age of the training and be older than its inputs.
rule select_model:
    """Select the best candidate of a grid by the validation cells."""
    input:
        iwelbo=layout.for_candidates(rules.evaluate_run.output.iwelbo, all_seeds=True),
        by_particles=layout.for_candidates(rules.evaluate_run.output.by_particles),
        effects=layout.for_candidates(rules.evaluate_run.output.effects),
        model=layout.for_candidates(rules.train.output.model),
        last_model=layout.for_candidates(rules.train.output.last_model),
        history=layout.for_candidates(rules.train.output.history),
    output:
        selection=f"{RUN}/selection.tsv",
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
        effects=f"{RUN}/predicted_effects.h5ad",
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
    log:
        "results/logs/select_model/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/select_model/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
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


use rule select_model as select_model_without_effects with:
    input:
        iwelbo=layout.for_candidates(
            rules.estimate_iwelbo.output.iwelbo, all_seeds=True
        ),
        by_particles=layout.for_candidates(rules.estimate_iwelbo.output.by_particles),
        model=layout.for_candidates(rules.train.output.model),
        last_model=layout.for_candidates(rules.train.output.last_model),
        history=layout.for_candidates(rules.train.output.history),
    output:
        selection=f"{RUN}/selection.tsv",
        iwelbo=f"{RUN}/iwelbo.parquet",
        by_particles=f"{RUN}/iwelbo_by_particles.tsv",
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
    wildcard_constraints:
        experiment=one_of(
            name for name in layout.experiments if not layout.has_counts(name)
        ),
        model=one_of(layout.candidates),


rule tabulate_selection:
    """Tabulate candidate and selected hyperparameters."""
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
