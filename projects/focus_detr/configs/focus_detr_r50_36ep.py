"""Focus-DETR (ICCV 2023), ResNet-50, 36 epochs: DINO that updates 30 % of the tokens."""

from sparsedet.config import get_config

from .focus_detr_r50_12ep import model

_recipe = get_config("common/coco_36ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

train.output_dir = "output/focus_detr_r50_36ep"
