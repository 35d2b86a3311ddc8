"""Sparse DETR's selection and losses on the host of `configs/photos.py`, a small DINO."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, TopKSelector

_host = get_config("dino_photos")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
optimizer, lr_multiplier = _host.optimizer, _host.lr_multiplier

model = _host.model
model.scorer = L(DAMPredictor)(embed_dim="${..embed_dim}")
model.selector = L(TopKSelector)(keep_ratio=0.3)
model.encoder_aux_loss = True
model.criterion.unmatched = [L(DecoderAttentionLoss)(weight=1.0)]

train.output_dir = "output/sparse_detr_photos"
