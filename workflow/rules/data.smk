# Where cells come from, and which of them train.


rule simulate_screen:
    """a simulated screen, whose truth is known"""
    output:
        screen=SCREEN,
        gene_sets=PROGRAMMES,
    log:
        "results/logs/simulate_screen/{screen}.log",
    benchmark:
        "results/benchmarks/simulate_screen/{screen}.tsv"
    wildcard_constraints:
        screen=from_source(WITH_PROGRAMMES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=lambda wildcards: SCREENS[wildcards.screen],
        code=uses_source("simulate_screen"),
    script:
        "../scripts/simulate_screen.py"


use rule simulate_screen as simulate_latents with:
    output:
        screen=SCREEN,
    wildcard_constraints:
        screen=from_source(*DIVIDED_BY_SOURCE),


# Compute nodes of a cluster seldom reach the network, so this runs where Snakemake does. The file
# itself is no output, which Snakemake would remove before it makes it again: what was verified
# once is verified again, not fetched again, and a transfer that broke off goes on. Addresses are
# read from the configuration and are no parameter: with others, all stays as it is.
localrules:
    download,


rule download:
    """a published file, compared with its checksum"""
    output:
        receipt="results/downloads/{download}.json",
    log:
        "results/logs/download/{download}.log",
    wildcard_constraints:
        download=one_of(config["downloads"]),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=500,
        runtime=24 * 60,
    params:
        content=lambda wildcards: content_of(wildcards.download),
        folder=DOWNLOADS_FOLDER,
    script:
        "../scripts/download.py"


rule verify_file:
    """a published file that was there before, compared with its checksum"""
    input:
        file=lambda wildcards: SCREENS[wildcards.screen]["path"],
    output:
        receipt="results/screens/{screen}/verified.json",
    log:
        "results/logs/verify_file/{screen}.log",
    benchmark:
        "results/benchmarks/verify_file/{screen}.tsv"
    wildcard_constraints:
        screen=from_source(*PUBLISHED),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(500),
        runtime=growing(120),
    params:
        content=lambda wildcards: content_of(download_of(SCREENS[wildcards.screen])),
    script:
        "../scripts/verify_file.py"


# Memory does not grow with the number of cells read.
rule build_norman:
    """the screen of Norman et al. 2019"""
    input:
        unpack(norman_input),
    output:
        screen=SCREEN,
    log:
        "results/logs/build_norman/{screen}.log",
    benchmark:
        "results/benchmarks/build_norman/{screen}.tsv"
    wildcard_constraints:
        screen=from_source("norman"),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        settings=lambda wildcards: SCREENS[wildcards.screen],
        code=uses("build_norman"),
    script:
        "../scripts/build_norman.py"


rule build_replogle:
    """the screen of Replogle et al. 2022"""
    input:
        receipt=receipt_of,
        perturbations=HERE / "data/reference/replogle_perturbations.tsv",
        response_genes=HERE / "data/reference/replogle_response_genes.tsv",
    output:
        screen=SCREEN,
    log:
        "results/logs/build_replogle/{screen}.log",
    benchmark:
        "results/benchmarks/build_replogle/{screen}.tsv"
    wildcard_constraints:
        screen=from_source("replogle"),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        settings=lambda wildcards: SCREENS[wildcards.screen],
        code=uses("build_replogle"),
    script:
        "../scripts/build_replogle.py"


rule read_screen:
    """the screen of an h5ad file"""
    input:
        lambda wildcards: SCREENS[wildcards.screen]["path"],
    output:
        screen=SCREEN,
    log:
        "results/logs/read_screen/{screen}.log",
    benchmark:
        "results/benchmarks/read_screen/{screen}.tsv"
    wildcard_constraints:
        screen=from_source("h5ad"),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=growing(120),
    params:
        settings=lambda wildcards: SCREENS[wildcards.screen],
        code=uses("read_screen"),
    script:
        "../scripts/read_screen.py"


rule split_cells:
    """which cells train, validate and test"""
    input:
        screen=screen_of,
    output:
        split=f"{SPLIT}/split.tsv",
        provenance=f"{SPLIT}/split.json",
    log:
        "results/logs/split_cells/{experiment}/{split}.log",
    benchmark:
        "results/benchmarks/split_cells/{experiment}/{split}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1000, per_input=1),
        runtime=growing(30),
    params:
        split=lambda wildcards: vars(
            splits(EXPERIMENTS[wildcards.experiment])[wildcards.split]
        ),
        untrained_perturbations=lambda wildcards: EXPERIMENTS[wildcards.experiment][
            "split"
        ]["untrained_perturbations"],
        code=uses("split_cells"),
    script:
        "../scripts/split_cells.py"
