"""Efficient DETR's query initialization on Deformable DETR: the dense baseline of Sparse DETR."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.engine.optim import scaled_lr

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/efficient_detr.py").model

optimizer.lr = L(scaled_lr)(lr=2e-4, batch_size="${dataloader.train.total_batch_size}")
optimizer.params.rules[1].pattern = "sampling_offsets"
train.output_dir = "output/efficient_detr_r50_50ep"
