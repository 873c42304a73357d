# Training. One thread by default, since several models train side by side and a result is the
# same to the last bit only for the same number of threads; more with --set-threads train=N.


rule train:
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
        model=one_of(FITTED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=40),
        runtime=growing(12 * 60),
        gpu=1,
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        training=config["training"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("train_model"),
    script:
        "../scripts/train_model.py"
