# What a figure was made from, back to the data: snakemake provenance.


localrules:
    provenance,
    figure_provenance,


# Without output, so that it prints each time.
rule provenance:
    """what every figure was made from, printed"""
    input:
        layout.all_figures(),
    log:
        "results/logs/provenance.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("show_provenance"),
    script:
        "../scripts/show_provenance.py"


rule figure_provenance:
    """what one figure was made from"""
    input:
        f"{FIGURES}/{{figure}}.svg",
    output:
        f"{FIGURES}/{{figure}}.provenance.txt",
    log:
        "results/logs/provenance/{experiment}/{figure}.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("show_provenance"),
    script:
        "../scripts/show_provenance.py"
