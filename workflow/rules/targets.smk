# What the targets ask for: every run, table and figure that an experiment can have.


def properties(experiment):
    """What an experiment has that some figures and tables need, see samsvae/contents.py."""
    entry = EXPERIMENTS[experiment]
    trained = any(model in TRAINED for model in entry["models"])
    has = {
        COUNTS: has_counts(experiment),
        TRAINING: trained,
        GENE_SETS: gene_set_names(config, experiment),
        FRACTIONS: len(conditions(splits(entry))) > 1,
        GRIDS: any(model in CANDIDATES for model in entry["models"]),
        PAPER: trained and has_published_results(experiment),
        MASKS: any(has_mask(MODEL_SETTINGS[model]) for model in entry["models"]),
        GROUPS: entry["perturbation_groups"],
        STATE_MAP: config["evaluation"]["mapped_cells"],
        TRUTH: is_simulated(experiment),
    }
    return sorted(name for name, present in has.items() if present)


def of_first_split(path, experiment):
    """A path of an experiment; where it is of a split, of the first, which figures show."""
    first = next(iter(splits(EXPERIMENTS[experiment])))
    return path.format(experiment=experiment, split=first)


def reference_split(experiment):
    """Folder of the first split of an experiment, the one that detailed figures show."""
    return of_first_split(SPLIT, experiment)


def all_runs():
    """What every run of every experiment leaves behind for others to read."""
    trained = ["model.safetensors", "history.tsv", "iwelbo.parquet"]
    return [
        file
        for experiment in EXPERIMENTS
        for name in ["predicted_effects.h5ad", *trained]
        if name in trained or has_counts(experiment)
        for file in files_of(
            experiment, name, models=TRAINED if name in trained else None
        )
    ]


def all_tables():
    """Every table that an experiment shows or draws, once, and all of its metrics."""
    return sorted(
        {
            of_first_split(path, e)
            for e in EXPERIMENTS
            for path in [*tables_of(properties(e)), f"{TABLES}/metrics.parquet"]
        }
    )


def all_figures():
    """Every figure of every experiment."""
    return [
        f"results/{e}/figures/{figure.name}.svg"
        for e in EXPERIMENTS
        for figure in figures_of(properties(e))
    ]


def perturbation_figures(wildcards):
    """A figure of every perturbation of every experiment, which its list tells."""
    lists = [
        Path(checkpoints.list_perturbations.get(experiment=name).output.table)
        for name in filter(has_counts, EXPERIMENTS)
    ]
    return [
        str(table.parent.parent / line.rsplit("\t", 1)[1])
        for table in lists
        for line in table.read_text(encoding="utf-8").splitlines()[1:]
    ]


def closing_words():
    """What came out, if this run wrote the report, and where to look."""
    page, findings = Path("results/report.html"), Path("results/findings.txt")
    if ONLY_CHECKED or not page.is_file():
        return ""
    is_new = findings.is_file() and findings.stat().st_mtime >= STARTED
    told = f"\n{findings.read_text(encoding='utf-8')}\n" if is_new else ""
    return f"{told}The report: {page}"
