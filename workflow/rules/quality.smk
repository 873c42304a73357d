# Quality of a screen before any model is trained, from all of its cells.


localrules:
    share_assessment,


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
        experiment=one_of(layout.assessed_experiments()),
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


# An assessment depends on the screen alone.
rule share_assessment:
    """Copy the assessment of a screen for another experiment on the same screen."""
    input:
        **{
            name: layout.for_assessed(path)
            for name, path in rules.assess_screen.output.items()
        },
    output:
        **dict(rules.assess_screen.output.items()),
    log:
        "results/logs/share_assessment/{experiment}.log",
    benchmark:
        "results/benchmarks/share_assessment/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(
            name
            for name in layout.experiments
            if layout.has_counts(name) and name not in layout.assessed_experiments()
        ),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(500),
        runtime=growing(10),
    params:
        code=uses("share_assessment"),
    script:
        "../scripts/share_assessment.py"
