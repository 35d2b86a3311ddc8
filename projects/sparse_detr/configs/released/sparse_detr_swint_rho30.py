"""The model of kakaobrain's published weights with Swin-T (keep ratio 0.3): 91 category ids."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .sparse_detr_r50_rho30 import model

model.backbone = L(TimmBackbone)(name="swin_tiny_patch4_window7_224", norm_maps=True)
model.neck.in_channels = dict(res3=192, res4=384, res5=768)
