"""Sparse DETR (ICLR 2022), ResNet-50, keep ratio 0.3, 50 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.engine.optim import scaled_lr
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, TopKSelector

_recipe = get_config("common/coco_50ep.py")
dataset, dataloader, train = _recipe.dataset, _recipe.dataloader, _recipe.train
optimizer, lr_multiplier = _recipe.optimizer, _recipe.lr_multiplier

model = get_config("common/models/efficient_detr.py").model
model.scorer = L(DAMPredictor)(embed_dim="${..embed_dim}")
model.selector = L(TopKSelector)(keep_ratio=0.3)
model.encoder_aux_loss = True
model.criterion.unmatched = [L(DecoderAttentionLoss)(weight=1.0)]

optimizer.lr = L(scaled_lr)(lr=2e-4, batch_size="${dataloader.train.total_batch_size}")
optimizer.params.rules[1].pattern = "sampling_offsets"
train.output_dir = "output/sparse_detr_r50_rho30_50ep"
