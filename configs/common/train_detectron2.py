"""Settings of detectron2's `tools/lazyconfig_train_net.py` and of detrex's `tools/train_net.py`.

They take the place of `train` in `train.py`, which is for `sparsedet train`. Lengths are in
iterations.
"""

train = dict(
    output_dir="output",
    # a file, or a name that their catalogs know
    init_checkpoint="",
    # negative = a random seed
    seed=0,
    # 12 epochs of COCO in batches of 16
    max_iter=88_716,
    device="cuda",
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=7_393, max_to_keep=2),
    # 0 = only at the end
    eval_period=7_393,
    log_period=20,
    # only detrex's tool reads the rest; `clipping_adamw` clips in both
    clip_grad=dict(enabled=False, params=dict(max_norm=0.1, norm_type=2.0)),
    fast_dev_run=dict(enabled=False),
    model_ema=dict(enabled=False, decay=0.9997, device="", use_ema_weights_for_eval_only=False),
    wandb=dict(enabled=False, params=dict(dir="output", project="sparsedet", name=None)),
)
