# SAMS-VAE on single-cell CRISPR screens, from data to report.
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/library.smk"
include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/check.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/expression.smk"
include: "workflow/rules/latents.smk"
include: "workflow/rules/enrichment.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/reproduce.smk"
include: "workflow/rules/provenance.smk"


rule all:
    """Make all runs, tables, figures and the report."""
    default_target: True
    input:
        rules.write_report.output.report,
        layout.all_runs(),
        layout.all_tables(),
        layout.all_figures(),


rule tables:
    """Make the tables of every experiment."""
    input:
        layout.all_tables(),


rule figures:
    """Make the figures of every experiment."""
    input:
        layout.all_figures(),


onsuccess:
    if any(job.rule.name == "write_report" for job in workflow.dag.jobs):
        print(closing_words(*rules.write_report.output[::2], started=STARTED))
