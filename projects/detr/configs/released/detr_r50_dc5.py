"""The model of the published DC5 weights: COCO's 91 category ids."""

from .detr_r50 import model

model.backbone.dilation = True
model.neck.strides = [16]
