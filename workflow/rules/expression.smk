# Effects by gene: tables of all models, combinations, perturbations.


# for the first split and seed; ceilings do not predict combinations
rule tabulate_effects:
    """Tabulate effects of every gene, and the non-additivity of combinations."""
    input:
        observed=layout.for_first_split(rules.observe_effects.output.effects),
        screen=rules.share_assessment.output.effects,
        predicted=layout.for_runs(rules.evaluate_run.output.effects, reference=True),
    output:
        table=f"{TABLES}/effects.parquet",
        combinations=f"{TABLES}/combinations.tsv",
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
        ceilings=layout.ceilings,
        fdr=config["evaluation"]["fdr"],
        effects=config["evaluation"]["effects"],
        code=uses("tabulate_effects"),
    script:
        "../scripts/tabulate_effects.py"


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
