"""Deformable DETR with iterative box refinement (appendix A.4), one-stage."""

from .deformable_detr_r50_plain_50ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.decoder.refine = True
model.shared_heads = False
train.output_dir = "output/deformable_detr_r50_refine_50ep"
