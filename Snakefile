# SAMS-VAE on single-cell CRISPR screens: from cells to a report.
from snakemake.utils import min_version

min_version("9.0")


configfile: "config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/check.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/predict.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/reproduce.smk"
include: "workflow/rules/latents.smk"
include: "workflow/rules/expression.smk"
include: "workflow/rules/enrichment.smk"
include: "workflow/rules/figures.smk"
include: "workflow/rules/provenance.smk"


rule all:
    """everything: runs, tables, figures and the report"""
    default_target: True
    input:
        "results/report.html",
        all_runs(),
        all_tables(),
        all_figures(),


rule tables:
    """the tables of every experiment"""
    input:
        all_tables(),


rule figures:
    """the figures of every experiment"""
    input:
        all_figures(),


onsuccess:
    if closing := closing_words():
        print(closing)
