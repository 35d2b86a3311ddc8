"""Conditional DETR (ICCV 2021), ResNet-50, 50 epochs."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = get_config("common/optim.py").detr_optimizer, _recipe.lr_multiplier

model = get_config("common/models/conditional_detr.py").model

train.output_dir = "output/conditional_detr_r50_50ep"
