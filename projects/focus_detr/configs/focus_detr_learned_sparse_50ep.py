"""Deformable DETR with learned queries and Sparse DETR's token selection, keep ratio 0.3."""

from sparsedet.config import get_config

_host = get_config("projects/deformable_detr/configs/deformable_detr_r50_refine_50ep.py")
dataset, dataloader, train = _host.dataset, _host.dataloader, _host.train
model, optimizer, lr_multiplier = _host.model, _host.optimizer, _host.lr_multiplier

_sparse = get_config("projects/sparse_detr/configs/sparse_detr_r50_rho30_50ep.py").model
model.scorer, model.selector = _sparse.scorer, _sparse.selector
model.encoder_aux_loss, model.criterion.unmatched = True, _sparse.criterion.unmatched
train.output_dir = "output/focus_detr_learned_sparse_50ep"
