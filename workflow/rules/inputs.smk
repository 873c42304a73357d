# What rules take: functions of wildcards, in the order of the rules' files.

CHECK = "results/checks/{screen}"
# where a canonical screen has its labels, so that it is read like any other file
CANONICAL = {"perturbation_matrix": {"obsm": "dosage", "names": "perturbations"}}
CHECKED = list(
    dict.fromkeys(
        EXPERIMENTS[name]["screen"] for name in filter(has_counts, EXPERIMENTS)
    )
)

# what there is to say about the latent factors of runs
LATENT_TABLES = {
    "latents": "latent_effects.tsv",
    "factors": "factors.tsv",
    "groups": "factor_groups.tsv",
    "sharing": "group_sharing.tsv",
    "genes": "factor_genes.parquet",
    "enrichment": "factor_enrichment.tsv",
}


def gene_sets_of(wildcards):
    """GMT files that an experiment tests, in the order of their names."""
    files = []
    for name in gene_set_names(config, wildcards.experiment):
        simulated = PROGRAMMES.format(
            screen=EXPERIMENTS[wildcards.experiment]["screen"]
        )
        files.append(config["gene_sets"].get(name, simulated))
    return files


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


def content_of(download):
    """What makes another file of a download: all but its addresses."""
    return {k: v for k, v in config["downloads"][download].items() if k != "urls"}


def receipt_of(wildcards):
    """Where it stands that the published file of a screen is whole, and where it is."""
    screen = SCREENS[wildcards.screen]
    if screen["path"] is not None:
        return f"results/screens/{wildcards.screen}/verified.json"
    return f"results/downloads/{download_of(screen)}.json"


def norman_input(wildcards):
    """Where it stands where the file is, and the list of genes if there is one."""
    genes = SCREENS[wildcards.screen]["genes"]
    return {
        "receipt": receipt_of(wildcards),
        **({} if genes is None else {"genes": genes}),
    }


def split_to_train_on(wildcards):
    """The split of a training of one seed; none for a model whose seeds are trained together."""
    if wildcards.model in FITTED_TOGETHER:
        seeds = EXPERIMENTS[wildcards.experiment]["seeds"]
        raise WorkflowError(
            f"The seeds of the model {wildcards.model!r} are trained together, and "
            f"{wildcards.seed} is none of them ({', '.join(map(str, seeds))}). Add it to "
            f"experiments.{wildcards.experiment}.seeds, or leave out training.seeds_together."
        )
    return f"{SPLIT}/split.tsv".format(**wildcards)


def by_seeds(models):
    """Experiments with any of some models, by their list of seeds."""
    groups = {}
    for name, experiment in EXPERIMENTS.items():
        if set(models) & set(experiment["models"]):
            groups.setdefault(tuple(experiment["seeds"]), []).append(name)
    return groups


def exported_input(wildcards):
    """What predicted cells are made of: a model, a baseline's effects, or held-out cells alone."""
    folder = RUN.format(**wildcards)
    files = {
        "screen": screen_of(wildcards),
        "split": f"{SPLIT}/split.tsv".format(**wildcards),
    }
    if wildcards.model in TRAINED:
        files["model"] = f"{folder}/model.safetensors"
    elif wildcards.model in BASELINES:
        files["effects"] = f"{folder}/predicted_effects.h5ad"
    return files


def recovery_input(wildcards):
    """The model if there is one, and predicted effects where the true ones are known."""
    folder = RUN.format(**wildcards)
    files = {"screen": screen_of(wildcards)}
    if source_of(wildcards.experiment) == WITH_PROGRAMMES:
        files["predicted"] = f"{folder}/predicted_effects.h5ad"
    if wildcards.model in TRAINED:
        files["model"] = f"{folder}/model.safetensors"
        files["split"] = f"{SPLIT}/split.tsv".format(**wildcards)
    return files


def splits_files(name):
    """Input function: the file of that name of each split of an experiment."""
    return lambda wildcards: [
        f"{SPLIT}/{name}".format(experiment=wildcards.experiment, split=split)
        for split in splits(EXPERIMENTS[wildcards.experiment])
    ]


def metric_tables(wildcards):
    """Tables of metrics of an experiment: per split, and of the truth where it is known."""
    chosen = EXPERIMENTS[wildcards.experiment]
    tables = []
    if has_counts(wildcards.experiment):
        tables += splits_files("metrics.tsv")(wildcards)
    if any(model in TRAINED for model in chosen["models"]):
        tables.append(
            f"{TABLES}/iwelbo_metrics.tsv".format(experiment=wildcards.experiment)
        )
    if is_simulated(wildcards.experiment):
        tables += files_of(wildcards.experiment, "truth.tsv")
    return tables


def all_metrics(wildcards):
    """Tables of metrics by run, and by perturbation where there are effects."""
    experiment = wildcards.experiment
    files = {"metrics": f"{TABLES}/metrics.tsv".format(experiment=experiment)}
    if has_counts(experiment):
        files["perturbations"] = splits_files("perturbation_metrics.parquet")(wildcards)
    return files


def comparison_input(wildcards):
    """What models are compared by: runs, their perturbations, and cells where runs are single."""
    experiment = wildcards.experiment
    files = all_metrics(wildcards)
    alone = single_run_of(wildcards)
    if alone:
        files["iwelbo"] = files_of(experiment, "iwelbo.parquet", models=alone)
    return files


def single_run_of(wildcards):
    """The trained models of an experiment that has one split and one seed, and so one run of each."""
    entry = EXPERIMENTS[wildcards.experiment]
    if len(splits(entry)) > 1 or len(entry["seeds"]) > 1:
        return []
    return [model for model in entry["models"] if model in TRAINED]


def settings_of_splits(wildcards):
    """What the splits of an experiment are, by name."""
    entry = EXPERIMENTS[wildcards.experiment]
    return {name: vars(split) for name, split in splits(entry).items()}


def seeds_to_choose_by(wildcards):
    """The seeds of training of an experiment, and that of the job if it is another."""
    seeds = EXPERIMENTS[wildcards.experiment]["seeds"]
    own = int(wildcards.seed)
    return seeds if own in seeds else [*seeds, own]


def candidate_files(wildcards, name, seeds):
    """The file of that name of each candidate of a job's model, seed by seed."""
    return [
        f"{SPLIT}/{candidate}/seed{seed}/{name}".format(**wildcards)
        for candidate in CANDIDATES[wildcards.model]
        for seed in seeds
    ]


def candidates_of_run(name):
    """Input function: the file of that name of each candidate, from the job's seed."""
    return lambda wildcards: candidate_files(wildcards, name, [wildcards.seed])


def selection_tables(experiment):
    """What was tried and chosen on each split of an experiment, model by model."""
    seed = EXPERIMENTS[experiment]["seeds"][0]  # all seeds have the same table
    return [
        f"{RUN}/selection.tsv".format(
            experiment=experiment, split=split, model=model, seed=seed
        )
        for split in splits(EXPERIMENTS[experiment])
        for model in EXPERIMENTS[experiment]["models"]
        if model in CANDIDATES
    ]


def models_shown(wildcards):
    """The trained models that a job is about, in the order of its runs."""
    return [
        f"{RUN}/model.safetensors".format(experiment=wildcards.experiment, **run)
        for run in runs_shown(wildcards)
    ]


def latents_input(wildcards):
    """Models, and what is known of perturbations and genes."""
    files = {"models": models_shown(wildcards), "screen": screen_of(wildcards)}
    groups = EXPERIMENTS[wildcards.experiment]["perturbation_groups"]
    if groups:
        files["groups"] = groups
    if has_counts(wildcards.experiment) and gene_sets_of(wildcards):
        split = runs_shown(wildcards)[0]["split"]
        files["observed"] = f"{SPLIT}/observed_effects.h5ad".format(
            experiment=wildcards.experiment, split=split
        )
        files["gene_sets"] = gene_sets_of(wildcards)
    return files


def states_input(wildcards):
    """Models, and the cells that they were not trained on."""
    split = runs_shown(wildcards)[0]["split"]
    return {
        "models": models_shown(wildcards),
        "screen": screen_of(wildcards),
        "split": f"{SPLIT}/split.tsv".format(
            experiment=wildcards.experiment, split=split
        ),
    }


def similarity_input(wildcards):
    """Effects, and latent effects where a model is trained."""
    files = {"effects": f"{TABLES}/effects.parquet"}
    if runs_shown(wildcards):
        files["latents"] = f"{TABLES}/latent_effects.tsv"
    return {name: path.format(**wildcards) for name, path in files.items()}


def figure_table(wildcards):
    """The table behind a figure."""
    return of_first_split(SHOWN_FIGURES[wildcards.figure].path, wildcards.experiment)


def figure_options(wildcards):
    """What a figure needs to know beside its table."""
    return {
        "models": EXPERIMENTS[wildcards.experiment]["models"],
        "evaluation": {key: config["evaluation"][key] for key in ("top_genes", "fdr")},
    }
