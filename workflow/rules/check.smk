# What screens are like, before anything is trained: snakemake check.


localrules:
    check,


# Without output, so that it prints each time.
rule check:
    """what is wrong or strange in the screens of the configuration, printed"""
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
    """what is wrong or strange in a screen"""
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
        code=uses("check_screen"),
    script:
        "../scripts/check_screen.py"
