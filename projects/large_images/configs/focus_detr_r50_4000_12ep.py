"""Focus-DETR with ResNet-50 on pictures of 4000 pixels: it updates 10 % of the tokens."""

from sparsedet.config import get_config

_recipe = get_config("common/large_12ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("focus_detr_r50_12ep").model

model.selector.keep_ratio = 0.1
dataset.max_size = 4000
train.output_dir = "output/focus_detr_r50_4000_12ep"
