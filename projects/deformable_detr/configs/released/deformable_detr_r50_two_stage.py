"""The model of the published two-stage weights (also in ``transformers``): 91 category ids."""

from sparsedet.config import get_config
from sparsedet.modeling import TwoStageQueries

model = get_config("common/models/deformable_detr.py").model
model.num_classes = 91
model.backbone.weights = None
model.query_initializer._target_ = TwoStageQueries
model.decoder.refine = True
model.shared_heads = False
model.unmasked_border = True
