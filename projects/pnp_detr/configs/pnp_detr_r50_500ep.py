"""PnP-DETR (ICCV 2021), ResNet-50, 500 epochs: one model for any share of the tokens."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_500ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/pnp_detr.py").model

train.output_dir = "output/pnp_detr_r50_500ep"
