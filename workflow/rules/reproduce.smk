# The paper's numbers beside those of an experiment on the same screen and kind of split.


rule compare_with_paper:
    """the paper's results beside one's own"""
    input:
        screen=screen_of,
        metrics=f"{TABLES}/metrics.tsv",
        history=f"{TABLES}/training.tsv",
        published=HERE / "data/reference/published_norman.csv",
    output:
        table=f"{TABLES}/reproduction.tsv",
        overview=f"{TABLES}/reproduction_overview.tsv",
    log:
        "results/logs/compare_with_paper/{experiment}.log",
    benchmark:
        "results/benchmarks/compare_with_paper/{experiment}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(has_published_results, EXPERIMENTS)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        splits=settings_of_splits,
        models=lambda wildcards: {
            name: MODEL_SETTINGS[name]
            for name in EXPERIMENTS[wildcards.experiment]["models"]
            if name in FITTED
        },
        training=HOW_TO_FIT,
        evaluation=config["evaluation"],
        code=uses("compare_with_paper"),
    script:
        "../scripts/compare_with_paper.py"
