"""Settings of `sparsedet train`. Lengths are in epochs; one in iterations wins where it is set."""

train = dict(
    output_dir="output",
    # weights to begin with: a .pth or .safetensors file of the whole model or of its backbone
    init_checkpoint="",
    # of these weights leave out the class heads and the labels of denoising: for other classes
    reinit_class_heads=False,
    epochs=50,
    max_iter=None,
    # batches per optimizer step; an iteration is an optimizer step
    accumulation_steps=1,
    # "auto" is the accelerator if there is one, else the CPU
    device="auto",
    # null draws one and logs it
    seed=0,
    amp=dict(enabled=False, dtype="float16"),
    clip_grad=dict(enabled=True, params=dict(max_norm=0.1, norm_type=2.0)),
    # steps in a row whose loss or gradient is not finite that are skipped; one more ends the run
    max_nonfinite_steps=3,
    # averaged weights; evaluation uses them when enabled
    model_ema=dict(enabled=False, decay=0.9997),
    ddp=dict(find_unused_parameters=False),
    # evaluation and checkpoints, beside those at the end; 0 for the end alone
    eval_epochs=1,
    eval_period=None,
    best_metric="bbox/AP",
    # end after this many evaluations in a row without a better best_metric; null = never
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
