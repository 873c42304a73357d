# Screens from simulators, published files and user files, and their splits.


rule simulate_screen:
    """Simulate a screen with known truth."""
    output:
        screen=SCREEN,
        gene_sets=PROGRAMMES,
    log:
        "results/logs/simulate_screen/{screen}.log",
    benchmark:
        "results/benchmarks/simulate_screen/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(layout.screens_of(*WITH_PROGRAMMES)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        settings=layout.settings_of_screen,
        code=uses_source("simulate_screen"),
    script:
        "../scripts/simulate_screen.py"


use rule simulate_screen as simulate_latents with:
    output:
        screen=SCREEN,
    wildcard_constraints:
        screen=one_of(layout.screens_of(*DIVIDED_BY_SOURCE)),


# A local rule, since compute nodes of a cluster often have no network. The downloaded file is not
# an output, because Snakemake would remove it before a rerun: a rerun verifies the file instead of
# downloading it again, and an interrupted download resumes. URLs are read from the configuration
# and are not parameters, so a changed URL triggers no rerun.
localrules:
    download,


rule download:
    """Download a published file and verify its checksum."""
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
        content=lambda wildcards: layout.content_of_download(wildcards.download),
        folder=DOWNLOADS_FOLDER,
    script:
        "../scripts/download.py"


rule verify_file:
    """Verify the checksum of a published file given by the user."""
    input:
        file=layout.users_file_of,
    output:
        receipt="results/screens/{screen}/verified.json",
    log:
        "results/logs/verify_file/{screen}.log",
    benchmark:
        "results/benchmarks/verify_file/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(layout.screens_of(*PUBLISHED)),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(500),
        runtime=growing(120),
    params:
        content=layout.content_of_screen,
        found=layout.fingerprints_of,
    script:
        "../scripts/verify_file.py"


# Memory is independent of the number of cells.
rule build_norman:
    """Build the screen of Norman et al. 2019."""
    input:
        receipt=layout.receipt_of,
        genes=lambda wildcards: layout.screens[wildcards.screen]["genes"] or [],
    output:
        screen=SCREEN,
    log:
        "results/logs/build_norman/{screen}.log",
    benchmark:
        "results/benchmarks/build_norman/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(layout.screens_of("norman")),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        settings=layout.settings_of_screen,
        code=uses("build_norman"),
    script:
        "../scripts/build_norman.py"


rule build_replogle:
    """Build the screen of Replogle et al. 2022."""
    input:
        receipt=layout.receipt_of,
        perturbations=source("data/reference/replogle_perturbations.tsv"),
        response_genes=source("data/reference/replogle_response_genes.tsv"),
    output:
        screen=SCREEN,
    log:
        "results/logs/build_replogle/{screen}.log",
    benchmark:
        "results/benchmarks/build_replogle/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(layout.screens_of("replogle")),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        settings=layout.settings_of_screen,
        code=uses("build_replogle"),
    script:
        "../scripts/build_replogle.py"


rule read_screen:
    """Build the canonical screen of a user's AnnData file."""
    input:
        unpack(layout.users_files_of),
    output:
        screen=SCREEN,
    log:
        "results/logs/read_screen/{screen}.log",
    benchmark:
        "results/benchmarks/read_screen/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(layout.screens_of("h5ad")),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(3000),
        runtime=growing(120),
    params:
        settings=layout.settings_of_screen,
        content=layout.fingerprints_of,
        code=uses("read_screen"),
    script:
        "../scripts/read_screen.py"


rule split_cells:
    """Split cells into training, validation and test."""
    input:
        screen=layout.screen_of,
        # so that warnings are printed before training; ancient, so that they trigger no new split
        warnings=lambda wildcards: list(map(ancient, layout.warnings_of(wildcards))),
        # checked before training; ancient, since they change no split
        features=lambda wildcards: list(map(ancient, layout.features_of(wildcards))),
        table=layout.split_table_of,
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
        split=lambda wildcards: layout.settings_of_splits(wildcards)[wildcards.split],
        untrained_perturbations=lambda wildcards: layout.experiments[
            wildcards.experiment
        ]["split"]["untrained_perturbations"],
        given=layout.given_split_of,
        features=layout.feature_sources_of,
        code=uses("split_cells"),
    script:
        "../scripts/split_cells.py"


rule tabulate_cells:
    """Count the cells of each split, and excluded cells by reason."""
    input:
        screen=layout.screen_of,
        splits=layout.for_splits(rules.split_cells.output.split),
    output:
        table=f"{TABLES}/cells.tsv",
        screen=f"{TABLES}/screen.tsv",
        parts=f"{TABLES}/split.tsv",
    log:
        "results/logs/tabulate_cells/{experiment}.log",
    benchmark:
        "results/benchmarks/tabulate_cells/{experiment}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1000, per_input=1),
        runtime=growing(20),
    params:
        splits=lambda wildcards: list(layout.splits(wildcards.experiment)),
        code=uses("tabulate_cells"),
    script:
        "../scripts/tabulate_cells.py"
