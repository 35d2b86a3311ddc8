"""UP-DETR (CVPR 2021), ResNet-50: fine-tuning of its pre-trained weights, 300 epochs.

train.init_checkpoint names the converted pre-trained weights.
"""

from sparsedet.config import get_config

_recipe = get_config("common/coco_300ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/detr.py").model
model.encoder.norm_first = model.decoder.norm_first = True

optimizer.params.rules[0].lr_factor = 0.5
train.output_dir = "output/up_detr_r50_300ep"
