"""ResNet-50 that glances at pictures of 2560 pixels and looks at 10 % of their tiles."""

from sparsedet.config import get_config

_recipe = get_config("common/large_12ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/glance_and_look.py").model

dataset.max_size = 2560
train.output_dir = "output/glance_and_look_r50_2560_12ep"
