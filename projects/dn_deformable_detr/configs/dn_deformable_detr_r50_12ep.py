"""DN-Deformable-DETR, ResNet-50, 12 epochs."""

from sparsedet.config import get_config

_recipe = get_config("common/coco_12ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/dn_deformable_detr.py").model

train.output_dir = "output/dn_deformable_detr_r50_12ep"
