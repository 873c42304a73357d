# Comparison with the paper's results on the same screen and kind of split.


rule compare_with_paper:
    """Compare the results of an experiment with those of the paper."""
    input:
        screen=layout.screen_of,
        metrics=rules.compare_models.output.metrics,
        history=rules.compare_iwelbo.output.training,
        published=source("data/reference/published_norman.csv"),
    output:
        table=f"{TABLES}/reproduction.tsv",
        overview=f"{TABLES}/reproduction_overview.tsv",
    log:
        "results/logs/compare_with_paper/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_with_paper/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(layout.has_published_results, layout.experiments)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        splits=layout.settings_of_splits,
        models=lambda wildcards: {
            name: layout.models[name]
            for name in layout.experiments[wildcards.experiment]["models"]
            if name in layout.fitted
        },
        training=layout.training,
        evaluation=config["evaluation"],
        code=uses("compare_with_paper"),
    script:
        "../scripts/compare_with_paper.py"
