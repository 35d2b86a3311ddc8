"""DINO (ICLR 2023) with ResNet-50 and four levels: the host of Focus-DETR."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import ContrastiveDenoising, MixedQueries

from .deformable_detr import model

model.backbone.freeze_at = 1
model.encoder.update(feedforward_dim=2048, dropout=0.0)
model.query_initializer = L(MixedQueries)(embed_dim="${..embed_dim}", num_queries=900)
model.denoising = L(ContrastiveDenoising)(
    embed_dim="${..embed_dim}",
    num_classes="${..num_classes}",
    num_queries=100,
    label_noise=0.25,
    box_noise=1.0,
)
model.decoder.update(
    feedforward_dim=2048,
    dropout=0.0,
    refine=True,
    output_norm=True,
    look_forward_twice=True,
    makes_pos=True,
)
model.shared_heads = False
model.criterion.matched[0].weight = 1.0
model.max_detections = 300
