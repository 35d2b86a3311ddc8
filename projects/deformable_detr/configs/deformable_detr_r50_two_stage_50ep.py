"""Deformable DETR with iterative box refinement and two stages (appendix A.4)."""

from sparsedet.modeling import TwoStageQueries

from .deformable_detr_r50_refine_50ep import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model.query_initializer._target_ = TwoStageQueries
# the queries of two-stage models have no reference_points layer
optimizer.params.rules[1].pattern = "sampling_offsets"
train.output_dir = "output/deformable_detr_r50_two_stage_50ep"
