"""The model of detrex's 12-epoch weights with four levels: eps 1e-3, border tokens proposed."""

from sparsedet.config import get_config

model = get_config("common/models/dino.py").model
model.num_classes = 80
model.backbone.weights = None
model.decoder.eps = 1e-3
model.denoising.update(eps=1e-3, mask_unused=False)
model.unmasked_border = True
