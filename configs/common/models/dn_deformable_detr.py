"""DN-Deformable-DETR (CVPR 2022) with ResNet-50: learned anchor boxes and denoising."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import AnchorQueries, Denoising

from .deformable_detr import model

model.backbone.freeze_at = 1
model.encoder.update(feedforward_dim=2048, dropout=0.0)
model.query_initializer = L(AnchorQueries)(embed_dim="${..embed_dim}", num_queries=300)
model.denoising = L(Denoising)(
    embed_dim="${..embed_dim}",
    num_classes="${..num_classes}",
    num_groups=5,
    label_noise=0.2,
    box_noise=0.4,
)
model.decoder.update(feedforward_dim=2048, dropout=0.0, refine=True, makes_pos=True, scale_pos=True)
model.shared_heads = False
model.criterion.matched[0].weight = 1.0
model.max_detections = 300
