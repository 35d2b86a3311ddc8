"""Settings of `sparsedet train`. Lengths are in epochs; a length in iterations replaces it."""

train = dict(
    output_dir="output",
    # initial weights: a .pth or .safetensors file of the whole model or of its backbone
    init_checkpoint="",
    # do not load class heads and denoising labels from these weights, for other classes
    reinit_class_heads=False,
    epochs=50,
    max_iter=None,
    # batches per optimizer step; an iteration is an optimizer step
    accumulation_steps=1,
    # "auto" = the accelerator if there is one, else the CPU
    device="auto",
    # null = a random seed, which is logged
    seed=0,
    amp=dict(enabled=False, dtype="float16"),
    clip_grad=dict(enabled=True, params=dict(max_norm=0.1, norm_type=2.0)),
    # largest number of steps in a row that are skipped because loss or gradient is not finite
    max_nonfinite_steps=3,
    # averaged weights; evaluation uses them when enabled
    model_ema=dict(enabled=False, decay=0.9997),
    ddp=dict(find_unused_parameters=False),
    # interval of evaluations and checkpoints; 0 = only at the end
    eval_epochs=1,
    eval_period=None,
    best_metric="bbox/AP",
    # stop after this many evaluations in a row without a better best_metric; null = never
    early_stopping=dict(patience=None),
    checkpointer=dict(epochs=1, period=None, max_to_keep=2),
    # iterations per line of metrics.json and of the log
    log_period=20,
    # write TensorBoard files if the package is installed, with pictures after each evaluation
    tensorboard=True,
    # the same rows to Weights & Biases and MLflow; each needs its package
    wandb=dict(enabled=False, project="sparsedet", name=None),
    mlflow=dict(enabled=False, tracking_uri=None, experiment="sparsedet", name=None),
)
