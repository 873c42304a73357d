# Latent factors, their effects and enriched groups, and the latent states of cells. Each table is
# for the first split and seed; the table of any other run can be requested by its path.


# tables of latent factors, and of a classifier of perturbations by latent states
LATENT_TABLES = {
    "latents": "latent_effects.tsv",
    "factors": "factors.tsv",
    "groups": "factor_groups.tsv",
    "sharing": "group_sharing.tsv",
    "genes": "factor_genes.parquet",
    "enrichment": "factor_enrichment.tsv",
    "basal": "basal.tsv",
}


rule tabulate_latents:
    """Tabulate latent factors, and classify perturbations by latent states."""
    input:
        models=layout.for_shown_runs(rules.train.output.model),
        screen=layout.screen_of,
        split=layout.for_shown_split(rules.split_cells.output.split),
        groups=layout.groups_of,
        observed=branch(
            layout.tests_gene_sets_of,
            then=layout.for_shown_split(rules.observe_effects.output.effects),
        ),
        gene_sets=branch(layout.tests_gene_sets_of, then=layout.gene_sets_of),
    output:
        **{name: f"{TABLES}/{file}" for name, file in LATENT_TABLES.items()},
    log:
        "results/logs/tabulate_latents/{experiment}.log",
    benchmark:
        "results/benchmarks/tabulate_latents/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(4000, per_input=10),
        runtime=growing(180),
    params:
        runs=layout.shown_runs_of,
        gene_set_names=lambda wildcards, input: (
            gene_set_names(config, wildcards.experiment) if input.gene_sets else []
        ),
        enrichment=config["enrichment"],
        draws={"latent_draws": 1000, "effect_draws": 100},
        code=uses_models("tabulate_latents"),
    script:
        "../scripts/tabulate_latents.py"


use rule tabulate_latents as tabulate_latents_of_run with:
    output:
        **{name: f"{RUN}/{file}" for name, file in LATENT_TABLES.items()},
    log:
        "results/logs/tabulate_latents/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/tabulate_latents/{experiment}/{split}/{model}-seed{seed}.tsv"


rule infer_cells:
    """Infer states, bounds and responders of all cells of a screen, as AnnData."""
    input:
        model=rules.train.output.model,
        screen=layout.screen_of,
        factors=layout.factor_tables_of,
    output:
        cells=f"{RUN}/cells.h5ad",
        responders=f"{RUN}/responders.tsv",
        scores=f"{RUN}/responder_scores.tsv",
        responder_effects=f"{RUN}/responder_effects.h5ad",
    log:
        "results/logs/infer_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/infer_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
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
        run=run_of,
        settings={
            key: config["evaluation"][key]
            for key in ("cell_particles", "min_cells_guide")
        },
        code=uses_model("infer_cells"),
    script:
        "../scripts/infer_cells.py"


use rule collect_scores as collect_responders with:
    input:
        responders=layout.for_reference_run(rules.infer_cells.output.responders),
        responder_scores=layout.for_reference_run(rules.infer_cells.output.scores),
    output:
        responders=f"{TABLES}/responders.tsv",
        responder_scores=f"{TABLES}/responder_scores.tsv",
    log:
        "results/logs/collect_tables/{experiment}/responders.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/responders.tsv"
    params:
        **collecting(runs=layout.reference_runs_of),


# made only on request by path
rule apply_model:
    """Apply a trained model to another screen of the configuration."""
    input:
        unpack(layout.applied_screen_of),
        model=rules.train.output.model,
    output:
        cells=f"{RUN}/applied/{{screen}}/cells.h5ad",
        responders=f"{RUN}/applied/{{screen}}/responders.tsv",
        scores=f"{RUN}/applied/{{screen}}/responder_scores.tsv",
        responder_effects=f"{RUN}/applied/{{screen}}/responder_effects.h5ad",
        effects=f"{RUN}/applied/{{screen}}/predicted_effects.h5ad",
        notes=f"{RUN}/applied/{{screen}}/notes.txt",
    log:
        "results/logs/apply_model/{experiment}/{split}/{model}-seed{seed}-{screen}.log",
    benchmark:
        "results/benchmarks/apply_model/{experiment}/{split}/{model}-seed{seed}-{screen}.tsv"
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
        screen=layout.settings_of_screen,
        settings=lambda wildcards: {
            "draws": config["evaluation"]["effect_draws"],
            "estimator": config["evaluation"]["effect_estimator"],
            "library_size": config["evaluation"]["effect_library_size"],
            "seed": int(wildcards.seed),
            **{
                key: config["evaluation"][key]
                for key in (
                    "min_controls_per_batch",
                    "min_cells_guide",
                    "cell_particles",
                )
            },
        },
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("apply_model"),
    script:
        "../scripts/apply_model.py"


# The states are those of the first model alone. Cells and perturbations are mapped by one job, since
# UMAP compiles for longer than it runs.
rule compute_maps:
    """Compute UMAPs and clusters of the states of cells, and of perturbations."""
    input:
        models=layout.for_shown_runs(rules.train.output.model),
        screen=layout.screen_of,
        split=layout.for_shown_split(rules.split_cells.output.split),
        effects=rules.tabulate_effects.output.table,
        latents=rules.tabulate_latents.output.latents,
    output:
        states=f"{TABLES}/state_map.tsv",
        perturbations=f"{TABLES}/perturbation_map.tsv",
    log:
        "results/logs/compute_maps/{experiment}.log",
    benchmark:
        "results/benchmarks/compute_maps/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments_with("counts", "training")),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(4000, per_input=10),
        runtime=growing(60),
    params:
        runs=layout.shown_runs_of,
        most_cells=config["evaluation"]["mapped_cells"],
        code=uses_models("compute_maps"),
    script:
        "../scripts/compute_maps.py"


use rule compute_maps as map_states with:
    input:
        models=layout.for_shown_runs(rules.train.output.model),
        screen=layout.screen_of,
        split=layout.for_shown_split(rules.split_cells.output.split),
    output:
        states=f"{TABLES}/state_map.tsv",
    log:
        "results/logs/compute_maps/{experiment}.log",
    benchmark:
        "results/benchmarks/compute_maps/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments_with("training", without="counts")),


use rule map_states as map_states_of_run with:
    output:
        states=f"{RUN}/state_map.tsv",
    log:
        "results/logs/compute_maps/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/compute_maps/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments),
        model=one_of(layout.trained),


use rule compute_maps as map_perturbations with:
    input:
        effects=rules.tabulate_effects.output.table,
    output:
        perturbations=f"{TABLES}/perturbation_map.tsv",
    log:
        "results/logs/compute_maps/{experiment}.log",
    benchmark:
        "results/benchmarks/compute_maps/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(layout.experiments_with("counts", without="training")),


rule compare_perturbations:
    """Compute the similarity of perturbations by expression and latent effects."""
    input:
        effects=rules.tabulate_effects.output.table,
        screen=rules.share_assessment.output.effects,
        latents=branch(layout.shown_runs_of, then=rules.tabulate_latents.output.latents),
    output:
        table=f"{TABLES}/similarity.parquet",
    log:
        "results/logs/compare_perturbations/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_perturbations/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=20),
        runtime=growing(30),
    params:
        code=uses("compare_perturbations"),
    script:
        "../scripts/compare_perturbations.py"
