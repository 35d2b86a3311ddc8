"""The model of the published code: COCO's 91 category ids; for any ``keep_ratio``."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import TopKSelector

model = get_config("common/models/pnp_detr.py").model
model.num_classes = 91
model.backbone.weights = None
model.selector = L(TopKSelector)(keep_ratio=0.33, one_more=False)
model.criterion.unmatched[0].count_fillers = True
