# Where cells come from, and which of them train.


rule simulate_screen:
    output:
        screen=SCREEN,
        gene_sets=PROGRAMMES,
    log:
        "results/logs/simulate_screen/{screen}.log",
    benchmark:
        "results/benchmarks/simulate_screen/{screen}.tsv"
    wildcard_constraints:
        screen=one_of(SIMULATED),
    conda:
        "../../envs/samsvae.yaml"
    params:
        settings=lambda wildcards: config["screens"][wildcards.screen],
        code=uses("simulate_screen"),
    script:
        "../scripts/simulate_screen.py"


rule read_screen:
    input:
        lambda wildcards: config["screens"][wildcards.screen]["path"],
    output:
        screen=SCREEN,
    log:
        "results/logs/read_screen/{screen}.log",
    benchmark:
        "results/benchmarks/read_screen/{screen}.tsv"
    wildcard_constraints:
        screen=one_of([name for name in config["screens"] if name not in SIMULATED]),
    conda:
        "../../envs/samsvae.yaml"
    params:
        settings=lambda wildcards: config["screens"][wildcards.screen],
        code=uses("read_screen"),
    script:
        "../scripts/read_screen.py"


rule split_cells:
    input:
        screen=screen_of,
    output:
        split=f"{SPLIT}/split.tsv",
        provenance=f"{SPLIT}/split.json",
    log:
        "results/logs/split_cells/{experiment}/{split}.log",
    conda:
        "../../envs/samsvae.yaml"
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
