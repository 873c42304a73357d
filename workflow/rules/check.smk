# What screens are like, before anything is trained: snakemake check.


CHECK = "results/checks/{screen}"
# where a canonical screen has its labels, so that it is read like any other file
CANONICAL = {"perturbation_matrix": {"obsm": "dosage", "names": "perturbations"}}
CHECKED = list(dict.fromkeys(entry["screen"] for entry in EXPERIMENTS.values()))


def gene_sets_on(screen):
    """GMT files that experiments test on a screen, by name."""
    return {
        name: config["gene_sets"].get(name, PROGRAMMES.format(screen=screen))
        for experiment, entry in EXPERIMENTS.items()
        if entry["screen"] == screen
        for name in gene_set_names(config, experiment)
    }


def checked_settings(wildcards):
    """Where a screen's file has what: the user's own file, or else the canonical screen."""
    entry = config["screens"][wildcards.screen]
    if entry["source"] == "h5ad":
        return {key: value for key, value in entry.items() if key != "source"}
    return {"path": SCREEN.format(screen=wildcards.screen), **CANONICAL}


def checked_files(wildcards):
    """The files that a check reads; one of the user's that is missing is for the check to tell."""
    settings = checked_settings(wildcards)
    made = [SCREEN.format(**wildcards), PROGRAMMES.format(**wildcards)]
    named = [settings.get(key) for key in ("path", "genes", "guide_table")]
    named += gene_sets_on(wildcards.screen).values()
    return [path for path in named if path and (path in made or os.path.exists(path))]


localrules:
    check,


# Without output, so that it prints each time.
rule check:
    input:
        texts=expand(f"{CHECK}.txt", screen=CHECKED),
        findings=expand(f"{CHECK}.tsv", screen=CHECKED),
    log:
        "results/logs/check.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        code=uses("show_checks"),
    script:
        "../scripts/show_checks.py"


rule check_screen:
    input:
        checked_files,
    output:
        text=f"{CHECK}.txt",
        findings=f"{CHECK}.tsv",
    log:
        "results/logs/check_screen/{screen}.log",
    conda:
        "../../envs/samsvae.yaml"
    params:
        settings=checked_settings,
        gene_sets=lambda wildcards: gene_sets_on(wildcards.screen),
        sizes={key: config["enrichment"][key] for key in ("min_size", "max_size")},
        code=uses("check_screen"),
    script:
        "../scripts/check_screen.py"
