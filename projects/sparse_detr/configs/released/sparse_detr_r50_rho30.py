"""The model of kakaobrain's published weights (keep ratio 0.3): COCO's 91 category ids."""

from sparsedet.config import LazyCall as L
from sparsedet.config import get_config
from sparsedet.modeling import DAMPredictor, DecoderAttentionLoss, TopKSelector

model = get_config("common/models/efficient_detr.py").model
model.num_classes = 91
model.backbone.weights = None
model.scorer = L(DAMPredictor)(embed_dim="${..embed_dim}")
model.selector = L(TopKSelector)(keep_ratio=0.3)
model.encoder_aux_loss = True
model.criterion.unmatched = [L(DecoderAttentionLoss)(weight=1.0)]
model.unmasked_border = True
