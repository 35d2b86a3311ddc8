"""DINO (ICLR 2023), ResNet-50, four levels (strides 8 to 64), 12 epochs."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_12ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/dino.py").model

train.output_dir = "output/dino_r50_4scale_12ep"
