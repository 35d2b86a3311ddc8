"""DAB-DETR (ICLR 2022) with ResNet-50: queries are boxes, refined from layer to layer."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import AnchorQueries

from .conditional_detr import model

model.position_embedding.temperature = 20.0
model.encoder.update(activation="prelu", scale_pos=True, dropout=0.0)
model.query_initializer = L(AnchorQueries)(
    embed_dim="${..embed_dim}", num_queries=300, num_patterns=0
)
model.decoder.update(
    activation="prelu",
    dropout=0.0,
    makes_pos=True,
    modulate_size=True,
    refine=True,
    look_forward_twice=True,
    eps=1e-3,
)
model.criterion.matched[0].weight = 1.0
model.max_detections = 300
