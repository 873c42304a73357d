# Gene-set enrichment of observed and predicted effects.


rule enrich_observed:
    """Test gene sets for enrichment among observed or predicted effects."""
    input:
        effects=rules.observe_effects.output.effects,
        observed=rules.observe_effects.output.effects,
        gene_sets=layout.gene_sets_of,
    output:
        table=f"{SPLIT}/enrichment.tsv",
    log:
        "results/logs/enrich_observed/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/enrich_observed/{experiment}/{split}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(60),
    params:
        settings=config["enrichment"],
        gene_set_names=lambda wildcards: gene_set_names(config, wildcards.experiment),
        run=lambda wildcards: {
            "split": wildcards.split,
            "model": "observed",
            "seed": "",
        },
        code=uses("enrich_effects"),
    script:
        "../scripts/enrich_effects.py"


use rule enrich_observed as enrich_predicted with:
    input:
        effects=rules.predict_effects.output.effects,
        observed=rules.observe_effects.output.effects,
        gene_sets=layout.gene_sets_of,
    output:
        table=f"{RUN}/enrichment.tsv",
    log:
        "results/logs/enrich_predicted/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/enrich_predicted/{experiment}/{split}/{model}-seed{seed}.tsv"
    params:
        settings=config["enrichment"],
        gene_set_names=lambda wildcards: gene_set_names(config, wildcards.experiment),
        run=run_of,
        code=uses("enrich_effects"),


# for the first split and seed; the table of any other run can be requested by its path
use rule collect_de_comparison as collect_enrichment with:
    input:
        of_split=layout.for_first_split(rules.enrich_observed.output.table),
        of_runs=layout.for_runs(rules.enrich_predicted.output.table, reference=True),
    output:
        table=f"{TABLES}/enrichment.tsv",
    log:
        "results/logs/collect_tables/{experiment}/enrichment.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/enrichment.tsv"
    params:
        **collecting("samsvae.biology.enrichment:with_order"),


rule compare_pathways:
    """Compare the gene sets of predicted and observed effects."""
    input:
        table=rules.collect_enrichment.output.table,
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
