"""The model of the published weights: COCO's 91 category ids."""

from sparsedet.config import get_config

model = get_config("common/models/dn_detr.py").model
model.num_classes = 91
model.backbone.weights = None
model.denoising.update(mask_unused=False, supervise_unused=False)
