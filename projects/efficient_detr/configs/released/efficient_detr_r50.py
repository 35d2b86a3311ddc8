"""The model of kakaobrain's published baseline with top-k queries: COCO's 91 category ids."""

from sparsedet.config import get_config

model = get_config("common/models/efficient_detr.py").model
model.num_classes = 91
model.backbone.weights = None
model.unmasked_border = True
