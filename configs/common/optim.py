"""AdamW and learning rate schedules of the Deformable DETR, DINO and DETR families."""

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch.optim import AdamW

from sparsedet.config import LazyCall as L
from sparsedet.engine.optim import WarmupParamScheduler, param_groups

_BACKBONE = dict(pattern=r"^backbone\.", lr_factor=0.1)


def _adamw(*rules: dict, lr: float = 1e-4, weight_decay_norm: float | None = None):
    return L(AdamW)(
        params=L(param_groups)(
            base_lr="${..lr}",
            rules=[_BACKBONE, *rules],
            weight_decay_norm=weight_decay_norm,
            weight_decay_bias=None,
        ),
        lr=lr,
        betas=(0.9, 0.999),
        weight_decay=1e-4,
        # on the CPU 3 ms a step for 5M parameters; the default takes 10
        fused=True,
    )


# For another batch size, the released Sparse DETR code multiplies lr by sqrt(batch / 16):
# optimizer.lr = L(scaled_lr)(lr=2e-4, batch_size="${dataloader.train.total_batch_size}")
optimizer = _adamw(dict(pattern="sampling_offsets|reference_points", lr_factor=0.1), lr=2e-4)

# DN-Deformable-DETR, DINO and Focus-DETR: half the rate, a lower one only for the backbone, and no
# weight decay of the norms
dino_optimizer = _adamw(weight_decay_norm=0.0)

# DETR and its variants with global attention: the same rate, with weight decay of the norms
detr_optimizer = _adamw()


def _drop(epoch: int, epochs: int):
    steps = L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[epoch], num_updates=epochs)
    return L(WarmupParamScheduler)(scheduler=steps, warmup_length=0.0, warmup_factor=0.001)


# 50 epochs with a drop at the 40th; other lengths drop at the same fraction
lr_multiplier = _drop(40, 50)
lr_multiplier_500ep = _drop(400, 500)
lr_multiplier_300ep = _drop(200, 300)
lr_multiplier_36ep = _drop(30, 36)
lr_multiplier_24ep = _drop(20, 24)
lr_multiplier_12ep = _drop(11, 12)

cosine_lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.02,
    warmup_factor=0.01,
)
