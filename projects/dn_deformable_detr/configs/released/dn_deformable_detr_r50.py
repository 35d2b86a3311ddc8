"""The model of detrex's weights, converted from those of the DN-DETR authors: eps 1e-3."""

from sparsedet.config import get_config

model = get_config("common/models/dn_deformable_detr.py").model
model.num_classes = 80
model.backbone.weights = None
model.decoder.eps = 1e-3
model.denoising.update(eps=1e-3, mask_unused=False)
