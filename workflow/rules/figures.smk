# Figures, each from one tidy table, and the report.


localrules:
    perturbation_figures,


# One job draws the figures of a module, since loading libraries takes longer than drawing. Since
# outputs cannot depend on wildcards, there is one rule for each set of figures.
for rule_name, figures, experiments in layout.figures_by_module():

    rule:
        """Draw the figures of one module as SVG and PDF."""
        name:
            rule_name
        input:
            tables=layout.tables_of_figures(figures),
            captions=[
                source(f"workflow/report/{figure.name}.rst") for figure in figures
            ],
        output:
            figures=[
                report(
                    f"{FIGURES}/{figure.name}.svg",
                    caption=f"../report/{figure.name}.rst",
                    category="{experiment}",
                    labels={"figure": figure.name},
                )
                for figure in figures
            ],
            pdfs=[f"{FIGURES}/{figure.name}.pdf" for figure in figures],
        log:
            f"results/logs/draw_figures/{{experiment}}/{figures[0].module}.log",
        benchmark:
            f"results/benchmarks/draw_figures/{{experiment}}/{figures[0].module}.tsv"
        wildcard_constraints:
            experiment=one_of(experiments),
        conda:
            "../../envs/samsvae.yaml"
        resources:
            mem_mb=growing(2000),
            runtime=growing(20),
        params:
            functions=[figure.function for figure in figures],
            options=layout.options_of_figures,
            code=uses("draw_figures", f"samsvae.figures.{figures[0].module}"),
        script:
            "../scripts/draw_figures.py"


# made only for perturbation_figures or on request by path
rule perturbation_figure:
    """Draw the figure of one perturbation."""
    input:
        table=rules.tabulate_effects.output.table,
        caption=source("workflow/report/perturbation.rst"),
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
        options=layout.options_of_figures,
        code=uses("draw_perturbation"),
    script:
        "../scripts/draw_perturbation.py"


rule perturbation_figures:
    """Draw a figure of each perturbation with a differentially expressed gene."""
    input:
        lambda _: [
            figure
            for name in filter(layout.has_counts, layout.experiments)
            for figure in figures_listed(
                checkpoints.list_perturbations.get(experiment=name).output.table
            )
        ],


# the page alone, and an archive of the page with its figures and tables
rule write_report:
    """Write the report, its archive, and the findings as text."""
    input:
        screens=layout.all_screens(),
        figures=layout.all_figures(),
        tables=layout.all_tables(),
        comparisons=expand(
            [rules.compare_models.output.summary, rules.compare_models.output.verdict],
            experiment=layout.experiments,
        ),
        effects=expand(
            rules.share_assessment.output.effects,
            experiment=filter(layout.has_counts, layout.experiments),
        ),
        captions=[source(f"workflow/report/{figure}.rst") for figure in SHOWN_FIGURES],
        template=source("workflow/report/report.html.j2"),
        style=source("workflow/report/report.css"),
        behaviour=source("workflow/report/report.js"),
        browser=source("workflow/report/browser.js"),
    output:
        report=f"results/report{REPORT}.html",
        archive=f"results/report{REPORT}.zip",
        findings=f"results/findings{REPORT}.txt",
    log:
        f"results/logs/write_report{REPORT}.log",
    benchmark:
        f"results/benchmarks/write_report{REPORT}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        config=config,
        experiments={name: layout.properties(name) for name in layout.experiments},
        code=uses("write_report", "samsvae.config.models"),
    script:
        "../scripts/write_report.py"
