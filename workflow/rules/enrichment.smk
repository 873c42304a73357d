# Gene-set enrichment of observed and predicted effects.


# for the first split and seed; the table of any other run can be requested by its path
rule enrich_effects:
    """Test gene sets for enrichment among observed and predicted effects."""
    input:
        screen=rules.share_assessment.output.effects,
        predicted=layout.for_runs(rules.evaluate_run.output.effects, reference=True),
        gene_sets=layout.gene_sets_of,
    output:
        table=f"{TABLES}/enrichment.tsv",
    log:
        "results/logs/enrich_effects/{experiment}.log",
    benchmark:
        "results/benchmarks/enrich_effects/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(120),
    params:
        settings=config["enrichment"],
        gene_set_names=lambda wildcards: gene_set_names(config, wildcards.experiment),
        runs=layout.runs_of(reference=True),
        code=uses("enrich_effects"),
    script:
        "../scripts/enrich_effects.py"


use rule enrich_effects as enrich_effects_of_run with:
    input:
        screen=rules.share_assessment.output.effects,
        predicted=[rules.evaluate_run.output.effects],
        gene_sets=layout.gene_sets_of,
    output:
        table=f"{RUN}/enrichment.tsv",
    log:
        "results/logs/enrich_effects/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/enrich_effects/{experiment}/{split}/{model}-seed{seed}.tsv"
    params:
        settings=config["enrichment"],
        gene_set_names=lambda wildcards: gene_set_names(config, wildcards.experiment),
        runs=lambda wildcards: [run_of(wildcards)],
        code=uses("enrich_effects"),


rule compare_pathways:
    """Compare the gene sets of predicted and observed effects."""
    input:
        table=rules.enrich_effects.output.table,
    output:
        table=f"{TABLES}/pathway_agreement.tsv",
    log:
        "results/logs/compare_pathways/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_pathways/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        fdr=config["evaluation"]["fdr"],
        code=uses("compare_pathways"),
    script:
        "../scripts/compare_pathways.py"
