"""DINO whose encoder updates the finest level only in every third layer (after Lite DETR)."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import LevelScheduleSelector

from .dino_r50_4scale_12ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.selector = L(LevelScheduleSelector)()
train.output_dir = "output/dino_r50_4scale_level_schedule_12ep"
