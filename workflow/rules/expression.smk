# Effects by gene: tables of all models, differential expression, combinations.


rule tabulate_effects:
    """Tabulate observed and predicted effects of every gene."""
    input:
        observed=layout.for_first_split(rules.observe_effects.output.effects),
        screen=rules.share_assessment.output.effects,
        predicted=layout.for_runs(rules.evaluate_run.output.effects, reference=True),
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
        runs=layout.runs_of(reference=True),
        fdr=config["evaluation"]["fdr"],
        effects=config["evaluation"]["effects"],
        code=uses("tabulate_effects"),
    script:
        "../scripts/tabulate_effects.py"


rule stratify_scores:
    """Stratify scores by effect strength."""
    input:
        table=rules.collect_scores.output.de_comparison,
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


# for the first split and seed, like the table of effects; ceilings do not predict combinations
rule tabulate_combinations:
    """Tabulate the non-additivity of combinations."""
    input:
        observed=layout.for_first_split(rules.observe_effects.output.effects),
        predicted=layout.for_runs(
            rules.evaluate_run.output.effects,
            reference=True,
            models=layout.trained + layout.baselines + layout.external,
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
        runs=layout.runs_of(
            reference=True,
            models=layout.trained + layout.baselines + layout.external,
        ),
        fdr=config["evaluation"]["fdr"],
        effects=config["evaluation"]["effects"],
        code=uses("tabulate_combinations"),
    script:
        "../scripts/tabulate_combinations.py"


# a checkpoint, since the perturbations of a screen are known only after it is built
checkpoint list_perturbations:
    """Count the cells and differentially expressed genes of each perturbation."""
    input:
        effects=rules.share_assessment.output.effects,
        responders=branch(layout.has("training"), then=f"{TABLES}/responders.tsv"),
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
