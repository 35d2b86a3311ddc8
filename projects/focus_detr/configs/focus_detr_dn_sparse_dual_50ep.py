"""DN-Deformable-DETR with Sparse DETR's token selection and Focus-DETR's dual attention."""

from sparsedet.modeling import DualAttentionEncoder

from .focus_detr_dn_sparse_50ep import dataloader, dataset, lr_multiplier, model, optimizer, train

model.encoder._target_ = DualAttentionEncoder
train.output_dir = "output/focus_detr_dn_sparse_dual_50ep"
