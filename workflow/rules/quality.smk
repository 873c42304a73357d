# Quality of a screen before any model is trained, from all of its cells.


rule assess_screen:
    """Assess a screen: effects of all cells, calibration, hits, knock-down, guides, batches."""
    input:
        screen=layout.screen_of,
    output:
        effects="results/{experiment}/screen_effects.h5ad",
        hits=f"{TABLES}/hits.tsv",
        null=f"{TABLES}/null_calibration.tsv",
        quantiles=f"{TABLES}/null_quantiles.tsv",
        knock_down=f"{TABLES}/knock_down.tsv",
        guides=f"{TABLES}/guides.tsv",
        batches=f"{TABLES}/batches.tsv",
        contexts=f"{TABLES}/contexts.tsv",
    log:
        "results/logs/assess_screen/{experiment}.log",
    benchmark:
        "results/benchmarks/assess_screen/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=20),
        runtime=growing(120),
    params:
        settings=layout.comparison_of,
        code=uses("assess_screen"),
    script:
        "../scripts/assess_screen.py"
