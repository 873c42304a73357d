# Training. One thread by default, since several models are trained in parallel and results are
# reproducible to the last bit only for the same number of threads; --set-threads train=N sets more.
# Cells that are streamed take the same memory however many there are.
PER_INPUT = 0 if layout.training["cells"] == "stream" else 10


rule train:
    """Train a model."""
    input:
        screen=layout.screen_of,
        split=layout.split_to_train_on,
        features=layout.features_of,
    output:
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
    log:
        "results/logs/train/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/train/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(layout.fitted),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=PER_INPUT),
        runtime=growing(12 * 60),
        gpu=1,
    params:
        settings=lambda wildcards: layout.models[wildcards.model],
        training=layout.training,
        seeds=lambda wildcards: [int(wildcards.seed)],
        code=uses_model("train_model"),
    script:
        "../scripts/train_model.py"


# All seeds of a model as replicates of one training, which uses a GPU more fully for small models.
# Since outputs cannot depend on wildcards, there is one rule for each list of seeds.
for number, (seeds, experiments) in enumerate(layout.by_seeds().items()):

    rule:
        """Train all seeds of a model."""
        name:
            f"train_seeds_{number + 1}" if number else "train_seeds"
        input:
            screen=layout.screen_of,
            split=rules.split_cells.output.split,
            features=layout.features_of,
        output:
            model=expand(f"{RUN}/model.safetensors", seed=seeds, allow_missing=True),
            last_model=expand(
                f"{RUN}/last_model.safetensors", seed=seeds, allow_missing=True
            ),
            history=expand(f"{RUN}/history.tsv", seed=seeds, allow_missing=True),
        log:
            "results/logs/train_seeds/{experiment}/{split}/{model}.log",
        benchmark:
            "results/benchmarks/train_seeds/{experiment}/{split}/{model}.tsv"
        wildcard_constraints:
            model=one_of(layout.fitted_together),
            experiment=one_of(experiments),
        conda:
            "../../envs/samsvae.yaml"
        threads: 1
        resources:
            mem_mb=growing(4000, per_input=PER_INPUT),
            runtime=growing(24 * 60),
            gpu=1,
        params:
            settings=lambda wildcards: layout.models[wildcards.model],
            training=layout.training,
            seeds=list(seeds),
            code=uses_model("train_model"),
        script:
            "../scripts/train_model.py"

    workflow.ruleorder(
        f"train_seeds_{number + 1}" if number else "train_seeds", "train"
    )
