"""DINO with Sparse DETR's token selection and Focus-DETR's dual attention."""

from sparsedet.modeling import DualAttentionEncoder

from .focus_detr_dino_sparse_36ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.encoder._target_ = DualAttentionEncoder
train.output_dir = "output/focus_detr_dino_sparse_dual_36ep"
