"""DINO with ResNet-50 on pictures of 2560 pixels: every token of the whole picture."""

from sparsedet.config import get_config

_recipe = get_config("common/large_12ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/dino.py").model

dataset.max_size = 2560
train.output_dir = "output/dino_r50_2560_12ep"
