"""The model of detrex's weights with Swin-L (384 px), 12 and 36 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .dino_r50_4scale import model

model.backbone = L(TimmBackbone)(name="swin_large_patch4_window12_384", norm_maps=True)
model.neck.in_channels = dict(res3=384, res4=768, res5=1536)
