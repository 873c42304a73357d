# Quality of a screen before any model is trained, from all of its cells.


localrules:
    share_assessment,


# An assessment depends on the screen alone, and each experiment has a copy of it.
rule assess_screen:
    """Assess a screen: effects of all cells, calibration, hits, knock-down, guides, batches."""
    input:
        screen=SCREEN,
    output:
        effects=f"{ASSESSMENT}/screen_effects.h5ad",
        hits=f"{ASSESSMENT}/hits.tsv",
        null=f"{ASSESSMENT}/null_calibration.tsv",
        quantiles=f"{ASSESSMENT}/null_quantiles.tsv",
        knock_down=f"{ASSESSMENT}/knock_down.tsv",
        guides=f"{ASSESSMENT}/guides.tsv",
        batches=f"{ASSESSMENT}/batches.tsv",
        contexts=f"{ASSESSMENT}/contexts.tsv",
    log:
        "results/logs/assess_screen/{screen}.log",
    benchmark:
        "results/benchmarks/assess_screen/{screen}.tsv"
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


rule share_assessment:
    """Copy the assessment of a screen to an experiment on it."""
    input:
        **{
            name: layout.for_screen(path)
            for name, path in rules.assess_screen.output.items()
        },
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
        "results/logs/share_assessment/{experiment}.log",
    benchmark:
        "results/benchmarks/share_assessment/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_counts, layout.experiments)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(500),
        runtime=growing(10),
    params:
        code=uses("share_assessment"),
    script:
        "../scripts/share_assessment.py"
