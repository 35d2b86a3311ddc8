"""DN-DETR (CVPR 2022) with ResNet-50: DAB-DETR that also restores noised objects in training."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import Denoising

from .dab_detr import model

model.query_initializer.num_patterns = 1
model.denoising = L(Denoising)(
    embed_dim="${..embed_dim}",
    num_classes="${..num_classes}",
    num_groups=5,
    label_noise=0.2,
    box_noise=0.4,
    eps=1e-3,
)
