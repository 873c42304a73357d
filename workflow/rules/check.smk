# Validation of screens before training: snakemake check.


localrules:
    check,
    show_warnings,
    tabulate_warnings,


# Without output, so that it prints every time.
rule check:
    """Print errors and warnings for the screens of the configuration."""
    input:
        texts=expand(f"{CHECK}.txt", screen=layout.checked_screens()),
        findings=expand(f"{CHECK}.tsv", screen=layout.checked_screens()),
    log:
        "results/logs/check.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("show_checks"),
    script:
        "../scripts/show_checks.py"


rule check_screen:
    """Validate a screen and write its errors and warnings."""
    input:
        layout.checked_files_of,
    output:
        text=f"{CHECK}.txt",
        findings=f"{CHECK}.tsv",
    log:
        "results/logs/check_screen/{screen}.log",
    benchmark:
        "results/benchmarks/check_screen/{screen}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        settings=layout.checked_settings_of,
        gene_sets=lambda wildcards: layout.gene_sets_on(wildcards.screen),
        sizes={key: config["enrichment"][key] for key in ("min_size", "max_size")},
        content=layout.fingerprints_of,
        code=uses("check_screen"),
    script:
        "../scripts/check_screen.py"


rule show_warnings:
    """Print the warnings for a screen once before training."""
    input:
        findings=f"{CHECK}.tsv",
    output:
        shown=f"{CHECK}.warnings.txt",
    log:
        "results/logs/show_warnings/{screen}.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("show_warnings"),
    script:
        "../scripts/show_warnings.py"


rule tabulate_warnings:
    """Tabulate the warnings for the report."""
    input:
        findings=lambda wildcards: f"{CHECK}.tsv".format(
            screen=layout.experiments[wildcards.experiment]["screen"]
        ),
    output:
        table=f"{TABLES}/warnings.tsv",
    log:
        "results/logs/tabulate_warnings/{experiment}.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("tabulate_warnings"),
    script:
        "../scripts/tabulate_warnings.py"
