"""Deformable DETR, one-stage, without box refinement (ICLR 2021, table 1), ResNet-50, 50 epochs."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/deformable_detr.py").model

dataloader.train.total_batch_size = 32
train.output_dir = "output/deformable_detr_r50_plain_50ep"
