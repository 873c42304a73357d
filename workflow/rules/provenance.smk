# Lineage of figures back to the data: snakemake provenance.


localrules:
    provenance,
    figure_provenance,


# Without output, so that it prints every time.
rule provenance:
    """Print the lineage of every figure."""
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
    """Write the lineage of one figure."""
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
