# Training. One thread by default, since several models train side by side and a result is the
# same to the last bit only for the same number of threads; more with --set-threads train=N.


rule train:
    """a trained model"""
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
    log:
        "results/logs/train/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/train/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of([model for model in FITTED if model not in FITTED_TOGETHER]),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=10),
        runtime=growing(12 * 60),
        gpu=1,
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        training=HOW_TO_FIT,
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("train_model"),
    script:
        "../scripts/train_model.py"


# All seeds of a model as one program, which uses a GPU better where the model is small.
rule train_seeds:
    """all seeds of a model, trained together"""
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        seeds=f"{SPLIT}/{{model}}/seeds.zip",
    log:
        "results/logs/train_seeds/{experiment}/{split}/{model}.log",
    benchmark:
        "results/benchmarks/train_seeds/{experiment}/{split}/{model}.tsv"
    wildcard_constraints:
        model=one_of(FITTED_TOGETHER),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=10),
        runtime=growing(24 * 60),
        gpu=1,
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        training=HOW_TO_FIT,
        seeds=lambda wildcards: EXPERIMENTS[wildcards.experiment]["seeds"],
        code=uses_model("train_seeds"),
    script:
        "../scripts/train_seeds.py"


rule take_seed:
    """one of the seeds that were trained together"""
    input:
        seeds=joint_training,
    output:
        model=f"{RUN}/model.safetensors",
        last_model=f"{RUN}/last_model.safetensors",
        history=f"{RUN}/history.tsv",
    log:
        "results/logs/take_seed/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/take_seed/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(FITTED_TOGETHER),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(1500),
        runtime=growing(20),
    params:
        code=uses("take_seed"),
    script:
        "../scripts/take_seed.py"
