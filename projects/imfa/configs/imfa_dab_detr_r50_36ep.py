"""IMFA (CVPR 2023) on DAB-DETR, ResNet-50, 36 epochs."""

from sparsedet.config import get_config

from .imfa_dab_detr_r50_50ep import dataloader, dataset, model, optimizer, train

_recipe = get_config("common/coco_36ep.py")
lr_multiplier, train.epochs = _recipe.lr_multiplier, _recipe.train.epochs
train.output_dir = "output/imfa_dab_detr_r50_36ep"
