"""The model of detrex's weights with Swin-T (224 px), all schedules."""

from sparsedet.config import LazyCall as L
from sparsedet.modeling import TimmBackbone

from .focus_detr_r50 import model

model.backbone = L(TimmBackbone)(name="swin_tiny_patch4_window7_224", norm_maps=True)
model.neck.in_channels = dict(res3=192, res4=384, res5=768)
