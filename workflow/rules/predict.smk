# What trained models and baselines predict: effects, and cells.


rule predict_effects:
    """effects that a trained model predicts"""
    input:
        screen=screen_of,
        model=f"{RUN}/model.safetensors",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_effects/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_effects/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        experiment=one_of(filter(has_counts, EXPERIMENTS)),
        model=one_of(TRAINED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=1),
        runtime=growing(60),
        gpu=1,
    params:
        draws=config["evaluation"]["effect_draws"],
        estimator=config["evaluation"]["effect_estimator"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("predict_effects"),
    script:
        "../scripts/predict_effects.py"


rule predict_baseline:
    """effects that a baseline predicts"""
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_baseline/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_baseline/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(BASELINES),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(30),
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        code=uses("predict_baseline"),
    script:
        "../scripts/predict_baseline.py"


rule predict_ceiling:
    """effects among half of the held-out cells"""
    input:
        screen=screen_of,
        split=f"{SPLIT}/split.tsv",
    output:
        effects=f"{RUN}/predicted_effects.h5ad",
    log:
        "results/logs/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/predict_ceiling/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(CEILINGS),
    conda:
        "../../envs/samsvae.yaml"
    resources:
        mem_mb=growing(2000, per_input=5),
        runtime=growing(30),
    params:
        settings=lambda wildcards: MODEL_SETTINGS[wildcards.model],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses("predict_ceiling"),
    script:
        "../scripts/predict_ceiling.py"


# no target asks for these cells; a user does, by the path
rule sample_cells:
    """cells drawn from a trained model, as AnnData"""
    input:
        screen=screen_of,
        model=f"{RUN}/model.safetensors",
    output:
        cells=f"{RUN}/sampled_cells.h5ad",
    log:
        "results/logs/sample_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/sample_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model=one_of(TRAINED),
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=1),
        runtime=growing(60),
        gpu=1,
    params:
        cells=config["evaluation"]["sampled_cells"],
        sample_from=config["evaluation"]["sample_from"],
        seed=lambda wildcards: int(wildcards.seed),
        code=uses_model("sample_cells"),
    script:
        "../scripts/sample_cells.py"


# as the cells above, on request alone
rule export_cells:
    """cells of a model or baseline for cell-eval, as AnnData"""
    input:
        unpack(exported_input),
    output:
        predicted=f"{RUN}/cell_eval/predicted.h5ad",
        real=f"{RUN}/cell_eval/real.h5ad",
    log:
        "results/logs/export_cells/{experiment}/{split}/{model}-seed{seed}.log",
    benchmark:
        "results/benchmarks/export_cells/{experiment}/{split}/{model}-seed{seed}.tsv"
    conda:
        "../../envs/samsvae.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000, per_input=20),
        runtime=growing(60),
        gpu=1,
    params:
        run=run_of,
        cells=config["evaluation"]["exported_cells"],
        code=uses_model("export_cells"),
    script:
        "../scripts/export_cells.py"
