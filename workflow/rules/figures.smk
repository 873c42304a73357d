# Figures, each from one tidy table, and the report.


localrules:
    perturbation_figures,


use rule collect_metrics as collect_training with:
    input:
        tables=lambda wildcards: files_of(
            wildcards.experiment, "history.tsv", models=TRAINED
        ),
    output:
        table=f"{TABLES}/training.tsv",
    log:
        "results/logs/collect_tables/{experiment}/training.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/training.tsv"
    params:
        runs=lambda wildcards: runs_of(wildcards.experiment, models=TRAINED),
        code=uses("collect_tables"),


use rule collect_training as collect_iwelbo_by_particles with:
    input:
        tables=lambda wildcards: files_of(
            wildcards.experiment, "iwelbo_by_particles.tsv", models=TRAINED
        ),
    output:
        table=f"{TABLES}/iwelbo_by_particles.tsv",
    log:
        "results/logs/collect_tables/{experiment}/iwelbo_by_particles.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/iwelbo_by_particles.tsv"


use rule collect_metrics as collect_masks with:
    input:
        tables=lambda wildcards: files_of(
            wildcards.experiment, "matched_masks.tsv", models=TRAINED, reference=True
        ),
    output:
        table=f"{TABLES}/matched_masks.tsv",
    log:
        "results/logs/collect_tables/{experiment}/matched_masks.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/matched_masks.tsv"


use rule collect_metrics as collect_recovery with:
    input:
        tables=lambda wildcards: files_of(
            wildcards.experiment, "recovery.tsv", models=TRAINED
        ),
    output:
        table=f"{TABLES}/recovery.tsv",
    log:
        "results/logs/collect_tables/{experiment}/recovery.log",
    benchmark:
        "results/benchmarks/collect_tables/{experiment}/recovery.tsv"


rule figure:
    """a figure, as SVG and PDF"""
    input:
        table=figure_table,
        caption=HERE / "workflow/report/{figure}.rst",
    output:
        figure=report(
            f"{FIGURES}/{{figure}}.svg",
            caption="../report/{figure}.rst",
            category="{experiment}",
            labels={"figure": "{figure}"},
        ),
        pdf=f"{FIGURES}/{{figure}}.pdf",
    log:
        "results/logs/figure/{experiment}/{figure}.log",
    benchmark:
        "results/benchmarks/figure/{experiment}/{figure}.tsv"
    wildcard_constraints:
        figure=one_of(SHOWN_FIGURES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        options=figure_options,
        code=lambda wildcards: uses(
            "draw_figure", f"samsvae.figures.{wildcards.figure}"
        ),
    script:
        "../scripts/draw_figure.py"


# no target but perturbation_figures asks for these; a user does, by the path
rule perturbation_figure:
    """the figure of one perturbation"""
    input:
        table=f"{TABLES}/effects.parquet",
        caption=HERE / "workflow/report/perturbation.rst",
    output:
        figure=f"{FIGURES}/perturbations/{{perturbation}}.svg",
        pdf=f"{FIGURES}/perturbations/{{perturbation}}.pdf",
    log:
        "results/logs/perturbation_figure/{experiment}/{perturbation}.log",
    benchmark:
        "results/benchmarks/perturbation_figure/{experiment}/{perturbation}.tsv"
    wildcard_constraints:
        perturbation="[^/]+",
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        options=figure_options,
        code=uses("draw_perturbation"),
    script:
        "../scripts/draw_perturbation.py"


rule perturbation_figures:
    """a figure of each perturbation that changes a gene"""
    input:
        perturbation_figures,


# the page alone, and all that it shows in one file to pass on
rule write_report:
    """the report, its archive, and the findings as text"""
    input:
        figures=all_figures(),
        tables=all_tables(),
        summaries=[
            f"results/{experiment}/tables/summary.tsv" for experiment in EXPERIMENTS
        ],
        captions=expand(HERE / "workflow/report/{figure}.rst", figure=SHOWN_FIGURES),
        template=HERE / "workflow/report/report.html.j2",
        style=HERE / "workflow/report/report.css",
        behaviour=HERE / "workflow/report/report.js",
    output:
        report="results/report.html",
        archive="results/report.zip",
        findings="results/findings.txt",
    log:
        "results/logs/write_report.log",
    benchmark:
        "results/benchmarks/write_report.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        config=config,
        experiments={name: properties(name) for name in EXPERIMENTS},
        code=uses("write_report"),
    script:
        "../scripts/write_report.py"
