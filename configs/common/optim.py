"""AdamW and learning rate schedules of the Deformable DETR, DINO and DETR families."""

from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler
from torch.optim import AdamW

from sparsedet.config import LazyCall as L
from sparsedet.engine.optim import WarmupParamScheduler, param_groups

# For another batch size, the released Sparse DETR code multiplies lr by sqrt(batch / 16):
# optimizer.lr = L(scaled_lr)(lr=2e-4, batch_size="${dataloader.train.total_batch_size}")
optimizer = L(AdamW)(
    params=L(param_groups)(
        base_lr="${..lr}",
        rules=[
            dict(pattern=r"^backbone\.", lr_factor=0.1),
            dict(pattern="sampling_offsets|reference_points", lr_factor=0.1),
        ],
        weight_decay_norm=None,
        weight_decay_bias=None,
    ),
    lr=2e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    # on the CPU, 3 ms per step for 5M parameters; the default takes 10
    fused=True,
)

# DN-Deformable-DETR, DINO and Focus-DETR: half the rate, a lower one only for the backbone, and no
# weight decay of the norms
dino_optimizer = L(AdamW)(
    params=L(param_groups)(
        base_lr="${..lr}",
        rules=[dict(pattern=r"^backbone\.", lr_factor=0.1)],
        weight_decay_norm=0.0,
        weight_decay_bias=None,
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    fused=True,
)

# DETR and its variants with global attention: the same rate, with weight decay of the norms
detr_optimizer = L(AdamW)(
    params=L(param_groups)(
        base_lr="${..lr}",
        rules=[dict(pattern=r"^backbone\.", lr_factor=0.1)],
        weight_decay_norm=None,
        weight_decay_bias=None,
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    fused=True,
)

# 50 epochs with a drop at the 40th; other lengths drop at the same fraction
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[40], num_updates=50),
    warmup_length=0.0,
    warmup_factor=0.001,
)

lr_multiplier_500ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[400], num_updates=500),
    warmup_length=0.0,
    warmup_factor=0.001,
)

lr_multiplier_300ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[200], num_updates=300),
    warmup_length=0.0,
    warmup_factor=0.001,
)

lr_multiplier_36ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[30], num_updates=36),
    warmup_length=0.0,
    warmup_factor=0.001,
)

lr_multiplier_24ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[20], num_updates=24),
    warmup_length=0.0,
    warmup_factor=0.001,
)

lr_multiplier_12ep = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1], milestones=[11], num_updates=12),
    warmup_length=0.0,
    warmup_factor=0.001,
)

cosine_lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.01),
    warmup_length=0.02,
    warmup_factor=0.01,
)
