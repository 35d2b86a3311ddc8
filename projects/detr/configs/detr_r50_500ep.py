"""DETR (ECCV 2020), ResNet-50, 500 epochs."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_500ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/detr.py").model

train.output_dir = "output/detr_r50_500ep"
