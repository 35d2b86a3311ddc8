"""The model of detrex's weights with Swin-B (384 px), 36 epochs."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .focus_detr_r50 import model

model.backbone = L(TimmBackbone)(name="swin_base_patch4_window12_384", norm_maps=True)
model.neck.in_channels = dict(res3=256, res4=512, res5=1024)
